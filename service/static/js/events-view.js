// The events of a job: generations, lost groups, scaling and states, newest first, each with the
// reason that the service gave.

import { byId, html, setText } from "./dom.js";
import { clock, count, numberList, numGroups } from "./format.js";

const MAX_ROWS = 200;
const ROUTINE = new Set(["placing", "starting", "ready", "member"]);
const STATE_TONES = {
  running: "good", pending: "busy", waiting: "busy", paused: "plain", finished: "info", cancelled: "gone", failed: "bad",
};
const GROUP_TONES = {
  placing: "gone", starting: "busy", ready: "info", member: "good", leaving: "leave", left: "gone",
  lost: "bad",
};

export function drawEvents(model) {
  const wantsAll = byId("events-all").checked;
  const shown = model.log.filter((event) => wantsAll || !isRoutine(event)).slice(-MAX_ROWS);
  // Cheap proof that nothing changed: steps redraw the page, but seldom this list.
  const looks = shown.map((event) => `${event.sequence}:${event.generation?.step ?? ""}`);
  const state = [model.detail.job_id, ...looks].join();
  const list = byId("events");
  if (list.dataset.shown === state) return;
  list.dataset.shown = state;
  byId("events-empty").hidden = shown.length > 0;
  list.replaceChildren(...shown.reverse().map(buildRow));
  announce(shown.find((event) => !isRoutine(event)));
}

/** Have screen readers say the newest event. */
function announce(event) {
  const words = event ? wordsOf(event) : null;
  setText(byId("announcer"), words ? `${words.what}: ${words.why}` : "");
}

// A group's way to membership is told by the generation that takes it in.
const isRoutine = (event) => event.kind === "group" && ROUTINE.has(event.state);

function buildRow(event) {
  const { what, why, facts, tone } = wordsOf(event);
  const words = html("span", { class: "why" }, why);
  if (facts) words.append(" ", html("span", { class: "facts" }, facts));
  return html(
    "li",
    {},
    html("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)),
    html("span", { class: "what", "data-tone": tone }, what),
    words,
  );
}

function wordsOf(event) {
  switch (event.kind) {
    case "state":
      return { what: `Job ${event.state}`, why: event.reason, tone: STATE_TONES[event.state] };
    case "group":
      return {
        what: `Group ${event.group_id} ${event.state}`,
        why: event.reason,
        tone: GROUP_TONES[event.state],
      };
    case "scale":
      return { what: `${numGroups(event.wanted)} wanted`, facts: boundsOf(event), why: event.reason, tone: "plain" };
    case "checkpoint":
      return event.error
        ? { what: `Checkpoint of step ${count(event.step)} failed`, why: event.error, tone: "bad" }
        : { what: `Checkpoint of step ${count(event.step)}`, why: event.path, tone: "plain" };
    case "regroup": {
      const { generation, phases, kept, overtook = [] } = event;
      const taken = Object.entries(phases).filter(([, seconds]) => seconds !== null);
      const words = taken.map(([name, s]) => `${name.replace("_s", "")} ${s.toFixed(2)} s`);
      if (typeof kept === "number") words.push(`${Math.round(100 * kept)} % of the step was kept`);
      if (overtook.length) words.push(`overtook ${numberList(overtook)}`);
      const why = words.join(", ");
      return { what: `Generation ${generation} took`, why, tone: "plain" };
    }
    default: {
      const { number, groups, reason, step } = event.generation;
      const when = step === null ? "announced" : `from step ${count(step)}`;
      const members = groups.length ? `groups ${numberList(groups)}` : "no groups";
      return { what: `Generation ${number}`, why: reason, facts: `${when}, ${members}`, tone: "info" };
    }
  }
}

function boundsOf({ minimum, maximum }) {
  const words = [];
  if (Number.isFinite(minimum)) words.push(`at least ${minimum}`);
  if (Number.isFinite(maximum)) words.push(`at most ${maximum}`);
  return words.join(", ");
}
