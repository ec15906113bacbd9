// The page of one job: loads it, follows its events, and has the views draw what is known, at most
// once a frame.

import { getJob, getThroughput, listEvents } from "./api.js";
import { Charts } from "./charts.js";
import { CheckpointsView } from "./checkpoints-view.js";
import { Controls } from "./controls.js";
import { byId, setText, showMessage } from "./dom.js";
import { drawEvents } from "./events-view.js";
import { drawHeader } from "./header-view.js";
import { JobModel } from "./job-model.js";
import { LogsView } from "./logs-view.js";
import { onFrame, spaced } from "./pace.js";
import { Picture } from "./picture.js";
import { drawSpecification } from "./spec-view.js";
import { follow, isFinal } from "./stream.js";
import { Tabs } from "./tabs.js";

const RELOAD_MS = 1000;
const IDLE_RELOAD_MS = 5000;
const RETRY_MS = 3000;
const POINTS = 2000;
const EVENTS_AT_ONCE = 1000;
const KINDS_BUT_STEPS = ["state", "group", "generation", "scale", "checkpoint", "regroup"];
const CONNECTION_WORDS = { live: "Live", reconnecting: "Reconnecting…", ended: "Job ended" };

export class JobPage {
  #charts = new Charts();
  #picture = new Picture();
  #controls;
  #logs = new LogsView();
  #checkpoints = new CheckpointsView();
  #tabs = new Tabs(byId("tabs"), () => this.#draw());
  #open = null;
  #draw = onFrame(() => this.#drawNow());

  /** @param {(jobId: string) => void} onDeleted called when a job's record is no more */
  constructor(onDeleted) {
    this.#controls = new Controls((detail) => this.#take(detail), onDeleted);
    byId("events-all").addEventListener("change", this.#draw);
    setInterval(() => {
      const isLive = this.#open?.model && !isFinal(this.#open.model.detail.state);
      if (isLive && !document.hidden) this.#open.reload?.();
    }, IDLE_RELOAD_MS);
  }

  /** Show no job, and stop all that the last one needed. */
  close() {
    this.#open?.abort.abort();
    this.#open?.stop?.();
    clearTimeout(this.#open?.retry);
    this.#open = null;
    this.#logs.close();
    for (const id of ["job", "job-loading", "connection"]) byId(id).hidden = true;
    showMessage(byId("job-error"), null);
  }

  /** Load a job, then follow it. Everything checks that it is still the open one. */
  async open(jobId) {
    this.close();
    const open = { abort: new AbortController(), model: null };
    const { signal } = open.abort;
    this.#open = open;
    byId("job-loading").hidden = false;
    try {
      const detail = await getJob(jobId, signal);
      open.model = new JobModel(detail);
      byId("job-loading").hidden = true;
      byId("job").hidden = false;
      this.#draw();
      await this.#takeEvents(jobId, open.model, signal);
      // Asked for afterwards: it holds every step that is not among the events that follow.
      open.model.takeThroughput(await getThroughput(jobId, POINTS, signal));
    } catch (error) {
      if (error.name === "AbortError") return;
      byId("job-loading").hidden = true;
      if (error.status === 401) return; // the login is shown instead
      showMessage(byId("job-error"), error.message);
      if (error.status !== 404) open.retry = setTimeout(() => this.open(jobId), RETRY_MS);
      return;
    }
    open.reload = spaced(() => this.#reload(jobId, open), RELOAD_MS);
    this.#follow(jobId, open);
    // What has happened while the events were listed is not in the first snapshot.
    open.reload();
    this.#draw();
  }

  /** Everything but the steps, which the throughput holds: a long run has very many. */
  async #takeEvents(jobId, model, signal) {
    for (;;) {
      const query = { after: model.sequence, limit: EVENTS_AT_ONCE, kind: KINDS_BUT_STEPS };
      const { events, next_after: newest } = await listEvents(jobId, query, signal);
      for (const event of events) model.takeEvent(event);
      model.passOver(newest);
      if (events.length < EVENTS_AT_ONCE) return;
    }
  }

  #follow(jobId, open) {
    open.stop = follow(jobId, open.model.sequence, {
      onEvent: (event) => {
        open.model.takeEvent(event);
        if (event.kind !== "step") open.reload();
        this.#draw();
      },
      onConnection: (state) => {
        setText(byId("connection"), CONNECTION_WORDS[state]);
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
      if (error.name !== "AbortError" && error.status) showMessage(byId("job-error"), error.message);
    }
  }

  #take(detail) {
    this.#open?.model.takeDetail(detail);
    this.#draw();
  }

  #drawNow() {
    const model = this.#open?.model;
    if (!model) return;
    const { detail } = model;
    document.title = `${detail.name} · ${detail.state} · mics`;
    drawHeader(model);
    this.#controls.draw(detail);
    this.#charts.draw(model);
    this.#picture.draw(model);
    drawEvents(model);
    const tab = this.#tabs.selected;
    this.#logs.draw(detail, tab === "logs");
    if (tab === "checkpoints") this.#checkpoints.draw(model);
    if (tab === "spec") drawSpecification(detail);
  }
}
