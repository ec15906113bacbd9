// The list of jobs, filtered by state, label and owner, page by page. Its newest part is asked for again
// every few seconds while the page is visible.

import { listJobs } from "./api.js";
import { byId, html, setText, showMessage } from "./dom.js";
import { count, numGroups, rate } from "./format.js";
import { later } from "./pace.js";

const INTERVAL_MS = 3000;
const PAGE_SIZE = 50;
const TYPING_MS = 300;
const LABEL = /^[^:\s]+:\S+$/;

export class ListView {
  #rows = new Map();
  #jobs = [];
  #cursor = null;
  #selected = null;
  #timer = null;
  #asked = 0;

  constructor() {
    const filter = later(() => this.#restart(), TYPING_MS);
    byId("filter-state").addEventListener("change", () => this.#restart());
    byId("filter-label").addEventListener("input", filter);
    byId("filter-owner").addEventListener("input", filter);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("filters-clear").addEventListener("click", () => {
      byId("filters").reset();
      byId("filter-state").focus();
      this.#restart();
    });
    byId("jobs-more").addEventListener("click", () => this.#more());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#timer) this.refresh();
    });
  }

  /** Show the list, mark `selected`, and keep it up to date. */
  start(selected) {
    this.#selected = selected;
    for (const [id, row] of this.#rows) this.#markSelected(id, row);
    if (this.#timer) return;
    this.refresh();
    this.#timer = setInterval(() => {
      if (!document.hidden) this.refresh();
    }, INTERVAL_MS);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
  }

  /** Ask for the newest jobs; those of further pages stay as they are. */
  async refresh() {
    const { jobs, next_cursor: cursor } = (await this.#ask({})) ?? {};
    if (!jobs) return;
    const isWhole = !cursor;
    const oldest = jobs.at(-1)?.created ?? 0;
    const ids = new Set(jobs.map((job) => job.job_id));
    const older = this.#jobs.slice(PAGE_SIZE).filter((job) => !ids.has(job.job_id) && job.created <= oldest);
    if (!older.length || isWhole) this.#cursor = cursor ?? null;
    this.#jobs = isWhole ? jobs : [...jobs, ...older];
    this.#show();
  }

  #restart() {
    this.#jobs = [];
    this.refresh();
  }

  async #more() {
    const { jobs, next_cursor: cursor } = (await this.#ask({ cursor: this.#cursor })) ?? {};
    if (!jobs) return;
    const known = new Set(this.#jobs.map((job) => job.job_id));
    const news = jobs.filter((job) => !known.has(job.job_id));
    this.#cursor = cursor ?? null;
    this.#jobs = [...this.#jobs, ...news];
    this.#show();
    this.#rows.get(news[0]?.job_id)?.link.focus();
  }

  /** One page, or null if it failed or another one was asked for meanwhile. */
  async #ask(more) {
    const label = byId("filter-label").value.trim();
    const isLabel = label === "" || LABEL.test(label);
    byId("filter-label").setAttribute("aria-invalid", String(!isLabel));
    if (!isLabel) {
      showMessage(byId("jobs-error"), "A label is given as key:value, such as team:speech.");
      return null;
    }
    this.#asked += 1;
    const turn = this.#asked;
    try {
      const owner = byId("filter-owner").value.trim();
      const query = { state: byId("filter-state").value, label, owner, limit: PAGE_SIZE, ...more };
      const answer = await listJobs(query);
      if (turn !== this.#asked) return null;
      showMessage(byId("jobs-error"), null);
      return answer;
    } catch (error) {
      // That the service does not answer is said once, above everything.
      if (error.status && error.status !== 401) showMessage(byId("jobs-error"), error.message);
      return null;
    }
  }

  #show() {
    const jobs = this.#jobs;
    const filters = ["filter-state", "filter-label", "filter-owner"].map((id) => byId(id).value.trim());
    const isFiltered = filters.some((value) => value !== "");
    byId("jobs-loading").hidden = true;
    byId("jobs-list").setAttribute("aria-busy", "false");
    byId("jobs-empty").hidden = jobs.length > 0 || isFiltered;
    byId("jobs-none").hidden = jobs.length > 0 || !isFiltered;
    byId("filters").hidden = jobs.length === 0 && !isFiltered;
    // Where nobody owns a job there is nothing to choose; once shown it stays.
    if (jobs.some((job) => job.owner)) byId("filter-owner").hidden = false;
    byId("jobs-more").hidden = this.#cursor === null;
    setText(byId("jobs-count"), jobs.length ? `${count(jobs.length)}${this.#cursor ? "+" : ""}` : "");
    const rows = new Map();
    for (const job of jobs) {
      const row = this.#rows.get(job.job_id) ?? buildRow(job);
      fillRow(row, job);
      this.#markSelected(job.job_id, row);
      rows.set(job.job_id, row);
    }
    // Moving an element would take the focus from it: touch the list only when its order changes.
    const ids = [...rows.keys()].join(" ");
    if (ids !== [...this.#rows.keys()].join(" ")) {
      byId("jobs-list").replaceChildren(...[...rows.values()].map((row) => row.item));
    }
    this.#rows = rows;
  }

  #markSelected(id, row) {
    if (id === this.#selected) row.link.setAttribute("aria-current", "page");
    else row.link.removeAttribute("aria-current");
  }
}

function buildRow(job) {
  const row = {
    name: html("span", { class: "job-name" }),
    state: html("span", { class: "badge" }),
    progress: html("progress", { "aria-hidden": "true" }),
    steps: html("span"),
    figures: html("span"),
  };
  const facts = html("span", { class: "job-facts" }, row.steps, row.figures);
  row.link = html(
    "a",
    { class: "job-link", href: `#/jobs/${encodeURIComponent(job.job_id)}` },
    row.name,
    row.state,
    facts,
    row.progress,
  );
  row.item = html("li", {}, row.link);
  return row;
}

function fillRow(row, job) {
  setText(row.name, job.name);
  setText(row.state, job.state);
  row.link.dataset.state = job.state;
  row.progress.max = Math.max(1, job.steps);
  row.progress.value = job.step;
  setText(row.steps, `${count(job.step)} / ${count(job.steps)}`);
  const isLive = job.state === "running" || job.state === "waiting";
  setText(row.figures, isLive ? `${rate(job.tokens_per_s)} tok/s · ${numGroups(job.num_groups)}` : job.job_id);
}
