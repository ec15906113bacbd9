// The list of jobs. It is asked for again every few seconds while the page is visible.

import { listJobs } from "./api.js";
import { byId, html, setText, showMessage } from "./dom.js";
import { count, numGroups, rate } from "./format.js";

const INTERVAL_MS = 3000;

export class ListView {
  #rows = new Map();
  #selected = null;

  /** Ask now and from now on. */
  async start() {
    await this.refresh();
    setInterval(() => {
      if (!document.hidden) this.refresh();
    }, INTERVAL_MS);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refresh();
    });
  }

  async refresh() {
    try {
      const { jobs } = await listJobs();
      this.#show(jobs);
      showMessage(byId("jobs-error"), null);
    } catch (error) {
      showMessage(byId("jobs-error"), error.message);
    }
  }

  select(jobId) {
    this.#selected = jobId;
    for (const [id, row] of this.#rows) this.#markSelected(id, row);
  }

  #show(jobs) {
    byId("jobs-empty").hidden = jobs.length > 0;
    setText(byId("jobs-count"), jobs.length ? count(jobs.length) : "");
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
