// Marks on a chart: a line where groups joined or left, and above it a small button that says how
// many. Its note tells the reason: under the pointer, near the line, and on keyboard focus. The marks
// of a chart are one stop of the Tab key; the arrow keys go from mark to mark.

import { html, setText } from "./dom.js";
import { clustersOf, labelOf, titleOf } from "./marks.js";

const NEAR_PX = 7;
const ROOM_PX = 34;
const MARGIN_PX = 4;
const MOST_TOLD = 4;

/**
 * A uPlot plugin.
 * @param {string} name what the chart shows, for the marks' label
 * @param {() => object[]} changesNow changes of membership, as `changesOf` gives them
 * @param {() => {mark: string}} coloursNow
 */
export function membershipMarks(name, changesNow, coloursNow) {
  const note = html("div", { class: "mark-note", hidden: "" });
  const lane = html("div", { class: "marks", role: "group", "aria-label": `${name}: changes of membership` });
  let clusters = [];
  let focused = null;

  function drawLines(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = coloursNow().mark;
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    for (const change of changesNow()) {
      const x = Math.round(plot.valToPos(change.step, "x", true));
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
    placeButtons(plot);
  }

  function placeButtons(plot) {
    const width = plot.over.clientWidth;
    const placed = changesNow()
      .map((change) => ({ change, x: plot.valToPos(change.step, "x") }))
      .filter(({ x }) => x >= -1 && x <= width + 1);
    clusters = clustersOf(placed, ROOM_PX);
    while (lane.childElementCount > clusters.length) lane.lastChild.remove();
    while (lane.childElementCount < clusters.length) lane.append(html("button", { type: "button", class: "mark" }));
    clusters.forEach(({ x, changes }, index) => fill(lane.children[index], x, changes, width));
    // Tab leads to the newest one; who is among the marks already is left where they are.
    if (focused === null) for (const button of lane.children) button.tabIndex = button === lane.lastChild ? 0 : -1;
  }

  function fill(button, x, changes, width) {
    const isSettled = button.dataset.at === `${x}|${width}|${changes.at(-1).number}|${changes.length}`;
    if (isSettled) return;
    button.dataset.at = `${x}|${width}|${changes.at(-1).number}|${changes.length}`;
    button.style.left = `${Math.min(Math.max(x, 12), width - 12)}px`;
    setText(button, labelOf(changes));
    button.dataset.tone = toneOf(changes);
    button.setAttribute("aria-label", changes.map((change) => `${titleOf(change)} ${change.reason}`).join(" "));
  }

  function tell(plot, changes, left) {
    note.hidden = !changes?.length;
    if (note.hidden) return;
    const told = changes.slice(-MOST_TOLD);
    const more = changes.length - told.length;
    note.replaceChildren(
      ...(more ? [html("p", { class: "quiet" }, `${more} earlier, and:`)] : []),
      ...told.flatMap((change) => [html("strong", {}, titleOf(change)), html("p", {}, change.reason)]),
    );
    // On the side with more room, and never beyond the card.
    const width = plot.over.clientWidth;
    const wanted = left > width / 2 ? left - 10 - note.offsetWidth : left + 10;
    note.style.left = `${Math.max(MARGIN_PX - plot.over.offsetLeft, Math.min(wanted, width - note.offsetWidth))}px`;
  }

  function hover(plot) {
    if (focused !== null) return;
    const { left } = plot.cursor;
    const isNear = (change) => Math.abs(plot.valToPos(change.step, "x") - left) <= NEAR_PX;
    tell(plot, left < 0 ? [] : changesNow().filter(isNear).slice(-1), left);
  }

  function listen(plot) {
    const show = (index) => {
      focused = index;
      const cluster = index === null ? null : clusters[index];
      tell(plot, cluster?.changes, cluster?.x ?? 0);
    };
    const indexOf = (target) => [...lane.children].indexOf(target);
    lane.addEventListener("focusin", ({ target }) => show(indexOf(target)));
    lane.addEventListener("focusout", () => show(null));
    lane.addEventListener("pointerover", ({ target }) => target !== lane && show(indexOf(target)));
    lane.addEventListener("pointerout", () => show(null));
    lane.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show(null);
      const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!steps) return;
      event.preventDefault();
      const last = lane.childElementCount - 1;
      const goal = lane.children[Math.min(last, Math.max(0, indexOf(event.target) + steps))];
      for (const button of lane.children) button.tabIndex = button === goal ? 0 : -1;
      goal.focus();
    });
    plot.over.append(lane, note);
  }

  return { hooks: { init: listen, draw: drawLines, setCursor: hover } };
}

function toneOf(changes) {
  const isLess = changes.some(({ gone }) => gone.length);
  const isMore = changes.some(({ joined }) => joined.length);
  return isLess ? "bad" : isMore ? "good" : "plain";
}
