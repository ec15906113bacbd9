// The log of the open job, of its driver and supervisor or of one worker, followed as it grows.

import { openLog } from "./api.js";
import { byId, html, setText } from "./dom.js";
import { onFrame } from "./pace.js";
import { isFinal } from "./stream.js";

const TAIL = 1000;
const MAX_LINES = 5000;

export class LogsView {
  #job = null;
  #isShown = false;
  #source = "";
  #sources = "";
  #abort = null;
  #lines = [];
  #write = onFrame(() => this.#writeNow());

  constructor() {
    byId("log-source").addEventListener("change", (event) => {
      this.#source = event.target.value;
      this.#read();
    });
    byId("log-follow").addEventListener("change", () => this.#read());
    byId("log-wrap").addEventListener("change", (event) => {
      byId("log").classList.toggle("wraps", event.target.checked);
    });
  }

  /** @param {boolean} isShown whether its tab is selected; it reads nothing before that */
  draw(detail, isShown) {
    const isOther = this.#job?.job_id !== detail.job_id;
    this.#job = detail;
    if (isOther) this.#source = "";
    this.#fillSources(detail.status?.groups ?? []);
    if (isShown && (isOther || !this.#isShown)) this.#read();
    if (!isShown) this.#abort?.abort();
    this.#isShown = isShown;
  }

  close() {
    this.#abort?.abort();
    this.#job = null;
    this.#isShown = false;
  }

  #fillSources(groups) {
    const workers = groups.flatMap(({ group_id: group, state, workers: all }) =>
      all.map(({ rank }) => ({
        name: `${group}.${rank}`,
        words: `Group ${group}, rank ${rank}${state === "lost" ? " (lost)" : ""}`,
      })),
    );
    const looks = workers.map(({ words }) => words).join();
    if (looks === this.#sources) return;
    this.#sources = looks;
    const options = workers.map(({ name, words }) => html("option", { value: name }, words));
    byId("log-source").replaceChildren(html("option", { value: "" }, "Driver and supervisor"), ...options);
    byId("log-source").value = this.#source;
  }

  async #read() {
    this.#abort?.abort();
    const abort = new AbortController();
    this.#abort = abort;
    this.#lines = [""];
    byId("log").textContent = "";
    const isFollowed = byId("log-follow").checked && !isFinal(this.#job.state);
    setText(byId("log-state"), "reading…");
    try {
      const query = { tail: TAIL, worker: this.#source, follow: isFollowed && "true" };
      const stream = await openLog(this.#job.job_id, query, abort.signal);
      setText(byId("log-state"), isFollowed ? "following" : "");
      for await (const text of stream) this.#take(text);
      setText(byId("log-state"), this.#lines.length > 1 ? "end of the log" : "The log is empty.");
    } catch (error) {
      if (abort.signal.aborted) return;
      setText(byId("log-state"), error.status ? error.message : "The connection broke. Choose it again to go on.");
    }
  }

  #take(text) {
    const [first, ...rest] = text.split("\n");
    this.#lines[this.#lines.length - 1] += first;
    this.#lines.push(...rest);
    if (this.#lines.length > MAX_LINES) this.#lines.splice(0, this.#lines.length - MAX_LINES);
    this.#write();
  }

  #writeNow() {
    const box = byId("log");
    // Who has scrolled up to read is left there.
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    box.textContent = this.#lines.join("\n");
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }
}
