// Marks on a chart: a vertical line at the first step of each generation, its number on top, and the
// reason of the nearest one on hover.

import { html } from "./dom.js";
import { count, numGroups } from "./format.js";

const NEAR_PX = 7;
const LABEL_PX = 30;

/**
 * A uPlot plugin.
 * @param {() => {number: number, step: number, reason: string, groups: number[]}[]} marksNow
 * @param {() => {ink: string, line: string}} coloursNow
 */
export function generationMarks(marksNow, coloursNow) {
  const note = html("div", { class: "mark-note", hidden: "" });

  function draw(plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    const { ink, line } = coloursNow();
    let labelledUpTo = -Infinity;
    ctx.save();
    ctx.font = `${10.5 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
    ctx.textBaseline = "top";
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    for (const mark of marksNow()) {
      const x = Math.round(plot.valToPos(mark.step, "x", true));
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.strokeStyle = line;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      // Labels that would cover each other are left out; hovering still names the generation.
      const isAtEnd = x + LABEL_PX * ratio > bbox.left + bbox.width;
      const from = isAtEnd ? x - LABEL_PX * ratio : x;
      if (from < labelledUpTo) continue;
      ctx.fillStyle = ink;
      ctx.textAlign = isAtEnd ? "right" : "left";
      ctx.fillText(`g${mark.number}`, x + (isAtEnd ? -3 : 3) * ratio, bbox.top + ratio);
      labelledUpTo = from + LABEL_PX * ratio;
    }
    ctx.restore();
  }

  function hover(plot) {
    const { left } = plot.cursor;
    const near = left < 0 ? [] : marksNow().filter(
      (mark) => Math.abs(plot.valToPos(mark.step, "x") - left) <= NEAR_PX,
    );
    note.hidden = near.length === 0;
    if (note.hidden) return;
    const mark = near.at(-1);
    const groups = numGroups(mark.groups.length);
    const title = `Generation ${mark.number} · ${groups} · from step ${count(mark.step)}`;
    note.replaceChildren(html("strong", {}, title), mark.reason);
    // On the side with more room, so that the note never leaves the chart.
    const isRight = left > plot.over.clientWidth / 2;
    note.style.left = isRight ? "auto" : `${left + 10}px`;
    note.style.right = isRight ? `${plot.over.clientWidth - left + 10}px` : "auto";
  }

  return {
    hooks: {
      init: (plot) => plot.over.append(note),
      draw,
      setCursor: hover,
    },
  };
}
