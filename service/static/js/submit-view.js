// A new job: the form, the text, what the service says of it as one types, a plan, and the submission.

import { submitJob, validateJob } from "./api.js";
import { byId, html, setText, showMessage } from "./dom.js";
import { Editor } from "./editor.js";
import { EXAMPLE_JOB } from "./example-job.js";
import { numGroups } from "./format.js";
import { GuidedForm } from "./guided-form.js";
import { later } from "./pace.js";
import { PlanView } from "./plan-view.js";
import { lineOf } from "./yaml-text.js";

const TYPING_MS = 350;
const DRAFT_KEY = "mics-draft";

export class SubmitView {
  #editor = new Editor(() => this.#edited());
  #form = new GuidedForm(this.#editor, () => this.#edited({ isFromForm: true }));
  #plan = new PlanView(() => this.#spec);
  #check = later(() => this.#checkNow(), TYPING_MS);
  #spec = null;
  #abort = null;
  #key = null;
  #isBusy = false;
  #onSubmitted;

  /** @param {(jobId: string) => void} onSubmitted */
  constructor(onSubmitted) {
    this.#onSubmitted = onSubmitted;
    byId("submit-button").addEventListener("click", () => this.#submit());
    byId("spec-reset").addEventListener("click", () => {
      this.#editor.text = EXAMPLE_JOB;
      this.#edited();
    });
  }

  start() {
    if (this.#editor.text) return;
    this.#editor.text = draft() ?? EXAMPLE_JOB;
    this.#edited();
  }

  #edited({ isFromForm = false } = {}) {
    this.#key = null;
    this.#spec = null;
    // What was said of the older text is not true of this one.
    this.#abort?.abort();
    keepDraft(this.#editor.text);
    showMessage(byId("submit-error"), null);
    if (!isFromForm) this.#form.read();
    this.#say("checking", "Checking…");
    this.#check();
  }

  async #checkNow() {
    this.#abort?.abort();
    this.#abort = new AbortController();
    try {
      this.#spec = await validateJob(this.#editor.text, this.#abort.signal);
      this.#showProblems([]);
      const { name, partition_size: size, groups } = this.#spec;
      const layout = size === "auto" ? "a partition size that the planner chooses" : `partition size ${size}`;
      this.#say("valid", `Valid: ${name}, ${numGroups(groups.wanted)}, ${layout}.`);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.#refuse(error);
    }
  }

  async #submit() {
    if (this.#isBusy) return;
    this.#isBusy = true;
    this.#key ??= newKey();
    try {
      const job = await submitJob(this.#editor.text, this.#key);
      keepDraft(null);
      this.#key = null;
      this.#onSubmitted(job.job_id);
    } catch (error) {
      this.#refuse(error);
      if (!error.problems?.length) showMessage(byId("submit-error"), error.message);
      else byId("problems").querySelector("button")?.focus();
    } finally {
      this.#isBusy = false;
    }
  }

  #refuse(error) {
    const problems = error.problems ?? [];
    this.#showProblems(problems);
    if (!problems.length) this.#say("unknown", error.message);
    else this.#say("invalid", problems.length === 1 ? "1 thing to correct" : `${problems.length} things to correct`);
  }

  #showProblems(problems) {
    const { text } = this.#editor;
    const placed = problems.map((problem) => ({ problem, line: lineOf(text, problem) }));
    this.#editor.mark(placed.map(({ line }) => line).filter((line) => line !== null));
    this.#form.mark(problems);
    byId("problems").replaceChildren(...placed.map(({ problem, line }) => this.#itemOf(problem, line)));
  }

  #itemOf({ field, value, rule, remedy }, line) {
    const where = line === null ? [] : [html("button", { type: "button", class: "plain line-link" }, `line ${line + 1}`)];
    where[0]?.addEventListener("click", () => this.#editor.select(line));
    return html(
      "li",
      {},
      html("p", { class: "problem-where" }, html("code", {}, field), ...where),
      html("p", {}, `${value}: ${rule}`),
      html("p", { class: "quiet" }, remedy),
    );
  }

  #say(state, words) {
    const summary = byId("check-summary");
    summary.dataset.check = state;
    setText(summary, words);
  }
}

/** Not `crypto.randomUUID`: that is missing where the page is not served over HTTPS. */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function draft() {
  try {
    return sessionStorage.getItem(DRAFT_KEY);
  } catch {
    return null;
  }
}

function keepDraft(text) {
  try {
    if (text === null) sessionStorage.removeItem(DRAFT_KEY);
    else sessionStorage.setItem(DRAFT_KEY, text);
  } catch {
    // Then it is only kept while the page is open.
  }
}
