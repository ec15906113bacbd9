// The cluster: its nodes with their workers and free places, and what waits for room.

import { getCluster } from "./api.js";
import { byId, html, setText, showMessage } from "./dom.js";
import { count, counted, numberList } from "./format.js";

const INTERVAL_MS = 2000;
const NUM_TONES = 6;

export class ClusterView {
  #timer = null;
  #shown = "";

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.#timer) this.#load();
    });
  }

  start() {
    this.#load();
    this.#timer = setInterval(() => {
      if (!document.hidden) this.#load();
    }, INTERVAL_MS);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = null;
  }

  async #load() {
    if (!this.#shown) setText(byId("cluster-note"), "Loading…");
    try {
      const cluster = await getCluster();
      showMessage(byId("cluster-error"), null);
      // Redrawn only where something changed, so that the focus and what is read out stay.
      const looks = JSON.stringify(cluster);
      if (looks !== this.#shown) this.#draw(cluster);
      this.#shown = looks;
    } catch (error) {
      if (error.status) showMessage(byId("cluster-error"), error.message);
    }
  }

  #draw({ nodes, pending }) {
    const jobs = [...new Set(nodes.flatMap((node) => node.workers.map((worker) => worker.job_id)))].sort();
    const used = nodes.reduce((sum, node) => sum + node.workers.length, 0);
    const free = nodes.reduce((sum, node) => sum + node.free_workers, 0);
    const figures = [
      counted(nodes.length, "node"),
      `${counted(used, "worker")} at work`,
      `room for ${count(free)} more`,
    ];
    setText(byId("cluster-note"), nodes.length ? figures.join(" · ") : "No node.");
    const waits = pending.map(({ resources, count: number }) => `${count(number)} × ${resourcesOf(resources)}`);
    byId("cluster-pending").hidden = waits.length === 0;
    byId("cluster-pending").replaceChildren(html("strong", {}, "Waits for room: "), waits.join(", "));
    byId("cluster-nodes").replaceChildren(...nodes.map((node) => nodeOf(node, jobs)));
    byId("cluster-legend").replaceChildren(...jobs.map((job, index) => legendOf(job, index)));
  }
}

function nodeOf(node, jobs) {
  const groups = Map.groupBy(node.workers, (worker) => `${worker.job_id} ${worker.group_id}`);
  const frames = [...groups.values()].map((workers) => frameOf(workers, jobs.indexOf(workers[0].job_id)));
  const free = Array.from({ length: node.free_workers }, () => html("li", { class: "place is-free" }));
  const facts = Object.entries(node.resources).map(
    ([name, amount]) => `${count(node.used[name] ?? 0)} of ${count(amount)} ${name} used`,
  );
  const room = `room for ${counted(node.free_workers, "worker")}`;
  return html(
    "li",
    { class: "card node-card", "data-node": node.state },
    html("h2", {}, node.host, ...(node.is_head ? [html("span", { class: "chip" }, "head")] : [])),
    html("p", { class: "badge" }, node.state.toLowerCase()),
    html("ul", { class: "places", "aria-label": `Partition groups on ${node.host}, ${room}` }, ...frames, ...free),
    html("p", { class: "quiet small numeric" }, [...facts, room].join(" · ")),
  );
}

/** The workers of one partition group on a node, in its frame. */
function frameOf(workers, index) {
  const [{ job_id: job, group_id: group }] = workers;
  const ranks = workers.map((worker) => worker.rank).sort((a, b) => a - b);
  const words = `${job}, group ${group}, rank ${numberList(ranks)}`;
  const link = html(
    "a",
    { href: `#/jobs/${encodeURIComponent(job)}`, "aria-label": words, title: words },
    html("span", { class: "place-group" }, html("b", {}, letterOf(index)), ` group ${group}`),
    html("span", { class: "place-ranks" }, ...ranks.map((rank) => html("b", {}, String(rank)))),
  );
  return html("li", { class: "place", "data-job": index % NUM_TONES }, link);
}

function legendOf(job, index) {
  const key = html("span", { class: "place", "data-job": index % NUM_TONES, "aria-hidden": "true" }, letterOf(index));
  return html("li", {}, key, html("a", { href: `#/jobs/${encodeURIComponent(job)}` }, job));
}

/** A, B, … Z, AA, …: tells the jobs apart where their colours do not. */
const letterOf = (index) =>
  (index >= 26 ? letterOf(Math.floor(index / 26) - 1) : "") + String.fromCharCode(65 + (index % 26));

const resourcesOf = (resources) =>
  Object.entries(resources).map(([name, amount]) => `${amount} ${name}`).join(" + ");
