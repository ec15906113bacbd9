// A plan of the job that is being written: the layout the planner would choose, why, and the others.

import { planJob } from "./api.js";
import { byId, html, setText, showMessage } from "./dom.js";
import { bytes, count, percent, rate, shortTime } from "./format.js";

const MOST_OTHERS = 5;

export class PlanView {
  #specNow;

  /** @param {() => object | null} specNow the specification as the service read it; null if it cannot */
  constructor(specNow) {
    this.#specNow = specNow;
    byId("plan-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
  }

  async #ask() {
    const job = this.#specNow();
    if (!job) {
      showMessage(byId("plan-error"), "Only a valid specification can be planned.");
      return;
    }
    const nodes = Number(byId("plan-nodes").value);
    const request = { job, cluster: byId("plan-cluster").value, nodes: nodes || undefined };
    setText(byId("plan"), "Planning…");
    try {
      this.#show(await planJob(request));
      showMessage(byId("plan-error"), null);
    } catch (error) {
      byId("plan").replaceChildren();
      showMessage(byId("plan-error"), error.message);
    }
  }

  #show({ choice, reason, candidates, num_candidates: number, num_parameters: parameters }) {
    const figures = [
      ["Partition size", count(choice.partition_size)],
      ["Groups", count(choice.num_groups)],
      ["Step", shortTime(choice.step_s)],
      ["Tokens/s", rate(choice.tokens_per_s)],
      ["MFU", percent(choice.mfu)],
      ["Memory a worker", bytes(choice.memory_bytes.total)],
    ];
    const others = candidates.slice(0, MOST_OTHERS);
    byId("plan").replaceChildren(
      html("dl", { class: "plan-figures" }, ...figures.map(figureOf)),
      html("p", {}, reason),
      html("p", { class: "quiet small" }, `${rate(parameters)} parameters; ${count(number)} layouts fit.`),
      ...(others.length ? [tableOf([choice, ...others])] : []),
    );
  }
}

const figureOf = ([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value));

function tableOf(layouts) {
  const heads = ["p", "Groups", "Micro-batch", "Step", "Memory"];
  const rows = layouts.map((layout, index) =>
    html(
      "tr",
      index === 0 ? { class: "is-choice" } : {},
      ...[
        `${count(layout.partition_size)}${index === 0 ? " ✓" : ""}`,
        count(layout.num_groups),
        count(layout.micro_batch_size),
        shortTime(layout.step_s),
        bytes(layout.memory_bytes.total),
      ].map((words) => html("td", { class: "number" }, words)),
    ),
  );
  const head = html("tr", {}, ...heads.map((words) => html("th", { scope: "col", class: "number" }, words)));
  return html(
    "div",
    { class: "table-scroll", tabindex: "0", role: "region", "aria-label": "The chosen layout and the next best" },
    html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)),
  );
}
