// The checkpoints of the open job, newest first. Asked for again when an event tells of a new one.

import { getCheckpoints } from "./api.js";
import { byId, html, setText } from "./dom.js";
import { count, moment } from "./format.js";

export class CheckpointsView {
  #asked = "";

  draw(model) {
    const seen = model.log.filter((event) => event.kind === "checkpoint").length;
    const state = `${model.detail.job_id} ${seen}`;
    if (state === this.#asked) return;
    this.#asked = state;
    this.#load(model.detail, state);
  }

  async #load(detail, state) {
    let checkpoints;
    try {
      ({ checkpoints } = await getCheckpoints(detail.job_id));
    } catch (error) {
      if (state !== this.#asked) return;
      this.#show([], error.message);
      this.#asked = "";
      return;
    }
    if (state !== this.#asked) return;
    const where = detail.spec.checkpoint.directory;
    const none = where ? "No checkpoint yet." : "None are written: the job names no checkpoint.directory.";
    const newest = checkpoints.findLast((each) => !each.error);
    const how = `mics export ${detail.job_id} makes the newest one a model that transformers loads.`;
    this.#show(checkpoints, newest ? how : none);
  }

  #show(checkpoints, note) {
    setText(byId("checkpoints-note"), note);
    byId("checkpoints-table").hidden = checkpoints.length === 0;
    byId("checkpoints-rows").replaceChildren(...checkpoints.toReversed().map(rowOf));
  }
}

function rowOf({ step, path, time, error }) {
  const state = html("span", { class: "badge", "data-tone": error ? "bad" : "good" }, error ? "failed" : "complete");
  return html(
    "tr",
    {},
    html("td", { class: "number" }, count(step)),
    html("td", {}, state),
    html("td", {}, Number.isFinite(time) ? moment(time) : "–"),
    html("td", {}, error || html("code", {}, path)),
  );
}
