// Draws the partition groups as SVG, names those that do not train with their reasons, and fills the
// table of all groups. Redrawn only when something that it shows has changed.

import { byId, html, setText, svg } from "./dom.js";
import { count } from "./format.js";
import { isGone, isTraining, layOut } from "./picture-layout.js";

const CHARACTER_PX = 5.4;
const MAX_OTHERS = 8;
const SLOW = 1.5; // as the alert has it

export class Picture {
  #model = null;
  #job = null;
  #known = new Set();
  #drawn = "";

  constructor() {
    byId("picture-legend").append(
      legendItem("key-partition", "frame: partition group, one whole replica of the model states"),
      legendItem("key-replication", "line: replication group, the same shard in every group"),
      legendItem("key-node", "box: node"),
    );
    new ResizeObserver(() => this.#model && this.draw(this.#model)).observe(byId("picture"));
    byId("groups-details").addEventListener("toggle", () => this.#model && this.draw(this.#model));
  }

  draw(model) {
    this.#model = model;
    const { detail } = model;
    if (detail.job_id !== this.#job) {
      this.#job = detail.job_id;
      this.#known = new Set();
    }
    const groups = detail.status?.groups ?? [];
    const width = byId("picture").clientWidth;
    const isOpen = byId("groups-details").open;
    const state = JSON.stringify([detail.job_id, width, isOpen, groups.map(looksOf)]);
    if (!width || state === this.#drawn) return;
    this.#drawn = state;
    this.#drawPicture(groups, detail.status?.partition_size ?? 0, width);
    drawOthers(groups);
    drawTable(isOpen ? groups : []);
  }

  #drawPicture(groups, size, width) {
    const box = byId("picture");
    byId("picture-legend").hidden = groups.length === 0;
    byId("groups-details").hidden = groups.length === 0;
    if (!groups.length) {
      setText(byId("picture-note"), "");
      const words = "No partition group yet. The job's supervisor asks Ray for the first ones.";
      box.replaceChildren(html("p", { class: "quiet" }, words));
      return;
    }
    const training = groups.filter(isTraining).length;
    const note = `${count(training)} training · ${count(size)} ${size === 1 ? "worker" : "workers"} each`;
    setText(byId("picture-note"), note);
    const plan = layOut(groups, size, width);
    const isFirst = this.#known.size === 0;
    const columns = plan.columns.map((column) => {
      const isNew = !isFirst && !this.#known.has(column.group.group_id);
      return buildColumn(column, isNew);
    });
    for (const { group_id: id } of groups) this.#known.add(id);
    box.replaceChildren(
      svg(
        "svg",
        {
          viewBox: `0 0 ${plan.width} ${plan.height}`,
          role: "img",
          "aria-label": labelOf(groups, size),
          class: plan.isTight ? "is-tight" : plan.isCompact ? "is-compact" : null,
        },
        ...plan.nodes.map(buildNode),
        ...plan.rails.flatMap(buildRail),
        ...columns,
      ),
    );
  }
}

/** What of a group the picture and its table show; a worker's step is not part of it. */
const looksOf = (group) => [
  group.group_id,
  group.state,
  group.reason,
  slowWords(group),
  group.workers.map((worker) => [worker.node_id, worker.pid]),
];

/** "1.8× slow" for a group that takes so many times as long as the others, which wait for it. */
const slowWords = ({ slowness }) => (slowness >= SLOW ? `${slowness.toFixed(1)}× slow` : "");

function labelOf(groups, size) {
  const states = new Map();
  for (const { state } of groups) states.set(state, (states.get(state) ?? 0) + 1);
  const words = [...states].map(([state, number]) => `${number} ${state}`).join(", ");
  return `Partition groups of ${size} workers: ${words}. The table below names all of them.`;
}

function buildNode(node) {
  const label = shortened(node.host, node.width - 6);
  return svg(
    "g",
    {},
    svg("title", {}, `node ${node.host} (${node.node})`),
    svg("rect", { class: "node", x: node.x, y: node.y, width: node.width, height: node.height, rx: 9 }),
    svg("text", { class: "node-label", x: node.x + node.width / 2, y: node.y + node.height - 6 }, label),
  );
}

function buildRail({ rank, y, x1, x2 }) {
  return [
    svg(
      "line",
      { class: "replication", x1, x2, y1: y, y2: y },
      svg("title", {}, `replication group ${rank}: the workers of rank ${rank}`),
    ),
    svg("text", { class: "rank-label", x: 0, y: y + 4 }, `rank ${rank}`),
  ];
}

function buildColumn({ group, name, x, top, frame, cells }, isNew) {
  const slow = slowWords(group);
  const hint = slow ? ` It is ${slow}: the others wait for it.` : "";
  const column = svg(
    "g",
    {
      "data-group": group.state,
      "data-id": group.group_id,
      "data-slow": slow ? "" : null,
      class: isNew ? "appears" : null,
    },
    svg("title", {}, `group ${group.group_id}, ${group.state}: ${group.reason}${hint}`),
    svg("text", { class: "group-name", x, y: top + 18 }, name),
    svg("text", { class: "group-state", x, y: top + 32 }, slow || group.state),
    svg("rect", { class: "frame", ...frame, rx: 10 }),
    ...cells.map((cell) => buildWorker(cell, group, x)),
  );
  if (isGone(group)) {
    const [right, bottom] = [frame.x + frame.width, frame.y + frame.height];
    column.append(svg("line", { class: "strike", x1: frame.x, y1: bottom, x2: right, y2: frame.y }));
  }
  return column;
}

function buildWorker({ rank, worker, y, size }, group, x) {
  const where = worker ? `, on ${worker.host}, process ${worker.pid}` : ", not placed yet";
  return svg(
    "g",
    {},
    svg("title", {}, `group ${group.group_id}, rank ${rank}${where}`),
    svg("rect", { class: "worker", x: x - size / 2, y: y - size / 2, width: size, height: size, rx: 6 }),
    svg("text", { class: "worker-rank", x, y }, String(rank)),
  );
}

/** The reasons of all groups that do not train, newest first. */
function drawOthers(groups) {
  const others = groups.filter((group) => group.state !== "member");
  const shown = others.slice(-MAX_OTHERS).reverse();
  const items = shown.map((group) =>
    html(
      "li",
      {},
      html("span", { class: "badge", "data-group": group.state }, `Group ${group.group_id} ${group.state}`),
      group.reason,
    ),
  );
  if (others.length > shown.length) {
    const words = `and ${count(others.length - shown.length)} more, in the table below`;
    items.push(html("li", { class: "quiet more" }, words));
  }
  byId("picture-others").replaceChildren(...items);
}

const stateOf = (group) => [group.state, slowWords(group)].filter(Boolean).join(", ");

function drawTable(groups) {
  const rows = groups.map((group) =>
    html(
      "tr",
      {},
      html("td", {}, String(group.group_id)),
      html("td", {}, html("span", { class: "badge", "data-group": group.state }, stateOf(group))),
      html("td", {}, group.reason),
      html("td", {}, group.workers.map((worker) => `${worker.host} (${worker.pid})`).join(", ") || "–"),
    ),
  );
  byId("groups-rows").replaceChildren(...rows);
}

function legendItem(key, words) {
  return html("li", {}, html("span", { class: `key ${key}`, "aria-hidden": "true" }), words);
}

function shortened(text, width) {
  const room = Math.max(1, Math.floor(width / CHARACTER_PX));
  return text.length <= room ? text : `…${text.slice(1 - room)}`;
}
