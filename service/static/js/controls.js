// Scaling and cancelling. What the service refuses stands beside the buttons, in its own words.

import { cancelJob, scaleJob } from "./api.js";
import { byId, setText, showMessage } from "./dom.js";
import { isFinal } from "./stream.js";

export class Controls {
  #job = null;
  #onChanged;
  #isEdited = false;

  /** @param {(detail: object) => void} onChanged gets the job as the service answered it */
  constructor(onChanged) {
    this.#onChanged = onChanged;
    byId("scale-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#scale();
    });
    byId("scale-groups").addEventListener("input", () => {
      this.#isEdited = true;
    });
    byId("cancel-button").addEventListener("click", () => {
      setText(byId("cancel-name"), this.#job.name);
      byId("cancel-dialog").returnValue = "";
      byId("cancel-dialog").showModal();
    });
    byId("cancel-dialog").addEventListener("close", () => {
      if (byId("cancel-dialog").returnValue === "cancel") this.#cancel();
    });
  }

  draw(detail) {
    const isOther = this.#job?.job_id !== detail.job_id;
    this.#job = detail;
    if (isOther) {
      this.#isEdited = false;
      this.#say(null, null);
    }
    const input = byId("scale-groups");
    input.max = String(detail.maximum_groups);
    // What the operator is typing is not overwritten by a newer snapshot.
    if (!this.#isEdited) input.value = String(detail.wanted_groups);
    setText(byId("scale-bounds"), `1 to ${detail.maximum_groups}`);
    byId("actions").hidden = isFinal(detail.state);
  }

  async #scale() {
    const groups = Number(byId("scale-groups").value);
    const upper = this.#job.maximum_groups;
    if (!Number.isInteger(groups) || groups < 1 || groups > upper) {
      this.#say(null, `Groups must be a whole number from 1 to ${upper}, as the job allows.`);
      byId("scale-groups").focus();
      return;
    }
    await this.#ask(scaleJob, [this.#job.job_id, groups], (detail) => {
      this.#isEdited = false;
      const words = detail.wanted_groups === 1 ? "1 group is" : `${detail.wanted_groups} groups are`;
      return `${words} wanted now; membership changes at a step boundary.`;
    });
  }

  async #cancel() {
    await this.#ask(cancelJob, [this.#job.job_id], () => "The job stops at its next step boundary.");
  }

  async #ask(request, parameters, wordsOf) {
    const buttons = byId("actions").querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    try {
      const detail = await request(...parameters);
      if (detail.job_id !== this.#job.job_id) return;
      this.#say(wordsOf(detail), null);
      this.#onChanged(detail);
    } catch (error) {
      this.#say(null, error.message);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  #say(note, error) {
    showMessage(byId("action-note"), note);
    showMessage(byId("action-error"), error);
  }
}
