// The head of a job: state and reason, progress with the remaining time, and the figures.

import { byId, html, setText } from "./dom.js";
import { count, duration, loss, percent, rate } from "./format.js";

export function drawHeader(model) {
  const { detail } = model;
  setText(byId("job-name"), detail.name);
  setText(byId("job-id"), detail.job_id);
  setText(byId("job-source"), sourceOf(detail));
  drawLabels(detail.labels ?? {});
  setText(byId("job-state"), detail.state);
  setText(byId("job-reason"), detail.reason);
  byId("job").dataset.state = detail.state;
  drawProgress(model);
  drawFigures(model);
}

function sourceOf({ source, owner }) {
  const words = source === "ray" ? "sent by ray job submit" : "sent to the API";
  return owner ? `${words} by ${owner}` : words;
}

function drawLabels(labels) {
  const box = byId("job-labels");
  const words = Object.entries(labels).map(([key, value]) => `${key}:${value}`);
  if (box.dataset.shown === words.join()) return;
  box.dataset.shown = words.join();
  box.replaceChildren(...words.map((each) => html("span", { class: "chip" }, each)));
}

function drawProgress(model) {
  const { steps } = model.detail;
  const bar = byId("job-progress");
  bar.max = Math.max(1, steps);
  bar.value = model.step;
  const percent = Math.floor((100 * model.step) / Math.max(1, steps));
  setText(byId("job-steps"), `${count(model.step)} of ${count(steps)} steps · ${percent} %`);
  const { remaining } = model;
  setText(byId("job-remaining"), remaining === null ? "" : `about ${duration(remaining)} left`);
}

function drawFigures(model) {
  const { detail } = model;
  const share = model.communicationShare;
  figure("figure-rate", rate(model.tokensPerSecond), share === null ? "" : `${percent(share)} communication`);
  figure("figure-loss", loss(model.loss));
  const mfu = Number.isFinite(model.mfu) ? `${percent(model.mfu)} MFU` : "";
  figure("figure-goodput", percent(model.series.goodput.at(-1) ?? model.goodput), mfu);
  figure("figure-groups", count(detail.num_groups), `of ${count(detail.wanted_groups)} wanted`);
  const generation = model.generations.get(detail.generation);
  const since = generation && generation.step !== null ? `since step ${count(generation.step)}` : "";
  figure("figure-generation", detail.generation ? count(detail.generation) : "–", since);
  const samples = detail.status?.samples;
  if (!samples) figure("figure-samples", "–");
  else {
    const missing = samples.due - samples.used;
    const faults = [];
    if (missing) faults.push(`${count(missing)} missing`);
    if (samples.repeated) faults.push(`${count(samples.repeated)} repeated`);
    const words = faults.length ? faults.join(", ") : "each once";
    figure("figure-samples", count(samples.used), words, faults.length > 0);
  }
}

function figure(id, value, words = "", isAlarm = false) {
  const element = byId(id);
  const text = `${value}|${words}|${isAlarm}`;
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  element.replaceChildren(value);
  if (words) element.append(html("small", { class: isAlarm ? "alarm" : null }, words));
}
