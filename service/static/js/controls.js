// Scaling, pausing, resuming, cancelling and deleting. What the service refuses stands below the
// buttons, in its own words.

import { deleteJob, scaleJob, steerJob } from "./api.js";
import { confirmed } from "./confirm.js";
import { byId, showMessage } from "./dom.js";
import { numGroups } from "./format.js";
import { ScaleDialog } from "./scale-dialog.js";
import { isFinal } from "./stream.js";

const QUESTIONS = {
  pause: {
    title: "Pause this job?",
    words: "It stops at its next step boundary and gives its workers back. It can be resumed from its newest checkpoint.",
    yes: "Pause the job",
    no: "Keep it running",
  },
  resume: {
    title: "Resume this job?",
    words: "It asks for its partition groups again and goes on from its newest checkpoint.",
    yes: "Resume the job",
    no: "Leave it paused",
  },
  cancel: {
    title: "Cancel this job?",
    words: "It stops at its next step boundary. A cancelled job does not start again.",
    yes: "Cancel the job",
    no: "Keep it",
    isDanger: true,
  },
  delete: {
    title: "Delete the record of this job?",
    words: "Its history, events and charts are removed from the service. Its checkpoints stay where they are.",
    yes: "Delete the record",
    no: "Keep it",
    isDanger: true,
  },
};
const NOTES = {
  pause: "The job pauses at its next step boundary.",
  resume: "The job starts again from its newest checkpoint.",
  cancel: "The job stops at its next step boundary.",
};

export class Controls {
  #job = null;
  #onChanged;
  #onDeleted;
  #isBusy = false;
  #answered = Promise.resolve();
  #scaleDialog = new ScaleDialog();

  /**
   * @param {(detail: object) => void} onChanged gets the job as the service answered it
   * @param {() => void} onDeleted called when its record is no more
   */
  constructor(onChanged, onDeleted) {
    this.#onChanged = onChanged;
    this.#onDeleted = onDeleted;
    byId("scale-button").addEventListener("click", () => this.#scale());
    for (const action of ["pause", "resume", "cancel"]) {
      byId(`${action}-button`).addEventListener("click", () => this.#steer(action));
    }
    byId("delete-button").addEventListener("click", () => this.#delete());
  }

  draw(detail) {
    const isOther = this.#job?.job_id !== detail.job_id;
    this.#job = detail;
    if (isOther) this.#say(null, null);
    const isOver = isFinal(detail.state);
    const isPaused = detail.state === "paused";
    byId("scale-button").hidden = isOver || isPaused;
    byId("pause-button").hidden = isOver || isPaused;
    byId("resume-button").hidden = !isPaused;
    byId("cancel-button").hidden = isOver;
    byId("delete-button").hidden = !isOver;
    // A viewer would only be refused.
    byId("actions").hidden = byId("layout").dataset.role === "viewer";
  }

  async #scale() {
    // The dialog begins with what the last change has made of the job.
    await this.#answered;
    if (byId("scale-dialog").open) return;
    const wanted = await this.#scaleDialog.ask(this.#job);
    if (!wanted) return;
    await this.#ask(
      () => scaleJob(this.#job.job_id, wanted),
      (detail) =>
        `${numGroups(detail.wanted_groups)} wanted now; membership changes at a step boundary.`,
    );
  }

  async #steer(action) {
    const { job_id: id } = this.#job;
    if (!(await confirmed(QUESTIONS[action]))) return;
    await this.#ask(() => steerJob(id, action), () => NOTES[action]);
  }

  async #delete() {
    const { job_id: id } = this.#job;
    if (!(await confirmed(QUESTIONS.delete))) return;
    try {
      await deleteJob(id);
      this.#onDeleted();
    } catch (error) {
      this.#say(null, error.message);
    }
  }

  async #ask(request, wordsOf) {
    if (this.#isBusy) return;
    // Not `disabled`: that would take the focus from the button that was pressed.
    this.#isBusy = true;
    let answered;
    this.#answered = new Promise((resolve) => (answered = resolve));
    byId("actions").setAttribute("aria-busy", "true");
    try {
      const detail = await request();
      if (detail.job_id !== this.#job.job_id) return;
      this.#job = detail; // at once: the page is drawn a frame later
      this.#say(wordsOf(detail), null);
      this.#onChanged(detail);
    } catch (error) {
      this.#say(null, error.message);
    } finally {
      this.#isBusy = false;
      answered();
      byId("actions").removeAttribute("aria-busy");
    }
  }

  #say(note, error) {
    showMessage(byId("action-note"), note);
    showMessage(byId("action-error"), error);
  }
}
