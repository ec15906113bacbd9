// Puts the page together: the address decides which job is shown, a model holds what is known of it,
// and the views draw the model at most once a frame.

import { getJob, getThroughput } from "./api.js";
import { Charts } from "./charts.js";
import { Controls } from "./controls.js";
import { byId, setText, showMessage } from "./dom.js";
import { drawEvents } from "./events-view.js";
import { drawHeader } from "./header-view.js";
import { JobModel } from "./job-model.js";
import { ListView } from "./list-view.js";
import { onFrame, spaced } from "./pace.js";
import { Picture } from "./picture.js";
import { follow, isFinal } from "./stream.js";

const RELOAD_MS = 1000;
const IDLE_RELOAD_MS = 5000;
const RETRY_MS = 3000;
const FIRST_RECORDS = 2000;

class Page {
  #list = new ListView();
  #charts = new Charts();
  #picture = new Picture();
  #controls = new Controls((detail) => this.#take(detail));
  #open = null;
  #draw = onFrame(() => this.#drawNow());

  start() {
    addEventListener("hashchange", () => {
      this.#route();
      // On a narrow screen the list and the job take turns: begin at the top of what is new.
      if (matchMedia("(max-width: 860px)").matches) {
        scrollTo(0, 0);
        byId("content").focus();
      }
    });
    // A plain link to #content would change the address, and with it the job.
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      byId("content").focus();
    });
    byId("events-all").addEventListener("change", this.#draw);
    this.#route();
    this.#list.start();
    setInterval(() => {
      const isLive = this.#open?.model && !isFinal(this.#open.model.detail.state);
      if (isLive && !document.hidden) this.#open.reload?.();
    }, IDLE_RELOAD_MS);
  }

  #route() {
    const jobId = jobOf(location.hash);
    this.#close();
    this.#list.select(jobId);
    byId("layout").dataset.showing = jobId ? "job" : "list";
    byId("nothing").hidden = jobId !== null;
    if (jobId) this.#show(jobId);
    else document.title = "mics";
  }

  #close() {
    this.#open?.abort.abort();
    this.#open?.stop?.();
    clearTimeout(this.#open?.retry);
    this.#open = null;
    byId("job").hidden = true;
    byId("connection").hidden = true;
    showMessage(byId("job-error"), null);
  }

  /** Load a job, then follow it. Everything checks that it is still the open one. */
  async #show(jobId) {
    const open = { abort: new AbortController(), model: null };
    this.#open = open;
    try {
      const detail = await getJob(jobId, open.abort.signal);
      open.model = new JobModel(detail);
      byId("job").hidden = false;
      showMessage(byId("job-error"), null);
      this.#draw();
      // The chart stands at once; the replayed history then fills in what is older.
      const { records } = await getThroughput(jobId, FIRST_RECORDS, open.abort.signal);
      for (const record of records) open.model.takeRecord(record);
    } catch (error) {
      if (error.name === "AbortError") return;
      showMessage(byId("job-error"), error.message);
      if (error.status !== 404) open.retry = setTimeout(() => this.#route(), RETRY_MS);
      return;
    }
    open.reload = spaced(() => this.#reload(jobId, open), RELOAD_MS);
    this.#follow(jobId, open);
    this.#draw();
  }

  #follow(jobId, open) {
    open.stop = follow(jobId, {
      onEvent: (event) => {
        open.model.takeEvent(event);
        if (event.kind !== "step") open.reload();
        this.#draw();
      },
      onConnection: (state) => {
        const words = { live: "live", reconnecting: "reconnecting…", ended: "job ended" }[state];
        setText(byId("connection"), words);
        byId("connection").dataset.state = state;
        byId("connection").hidden = false;
      },
      isOver: () => isFinal(open.model.detail.state),
    });
  }

  async #reload(jobId, open) {
    try {
      const detail = await getJob(jobId, open.abort.signal);
      if (this.#open === open) this.#take(detail);
      showMessage(byId("job-error"), null);
    } catch (error) {
      if (error.name !== "AbortError") showMessage(byId("job-error"), error.message);
    }
  }

  #take(detail) {
    this.#open?.model.takeDetail(detail);
    this.#draw();
  }

  #drawNow() {
    const model = this.#open?.model;
    if (!model) return;
    document.title = `${model.detail.name} · ${model.detail.state} · mics`;
    drawHeader(model);
    this.#controls.draw(model.detail);
    this.#charts.draw(model);
    this.#picture.draw(model);
    drawEvents(model);
  }
}

function jobOf(hash) {
  const match = /^#\/jobs\/(.+)$/.exec(hash);
  if (!match) return null;
  try {
    return decodeURIComponent(match[1]);
  } catch {
    return match[1]; // typed by hand, no valid encoding: the service says that there is no such job
  }
}

new Page().start();
