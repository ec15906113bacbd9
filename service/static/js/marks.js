// What the marks of the charts say: which groups came and went with each generation, and why.

import { count, numberList, numGroups } from "./format.js";

/**
 * @param {{number: number, step: number | null, reason: string, groups: number[]}[]} generations
 * @returns {{number: number, step: number, joined: number[], gone: number[], reason: string,
 *            size: number}[]} those that were entered, in order
 */
export function changesOf(generations) {
  const ordered = [...generations].sort((a, b) => a.number - b.number);
  let before = new Set();
  const changes = [];
  for (const { number, step, reason, groups } of ordered) {
    const now = new Set(groups);
    const joined = groups.filter((group) => !before.has(group));
    const gone = [...before].filter((group) => !now.has(group));
    before = now;
    if (step !== null) changes.push({ number, step, joined, gone, reason, size: groups.length });
  }
  return changes;
}

/** [{joined: [2], gone: [0, 1]}] → "+1 −2"; a change of nothing → "±0". */
export function labelOf(changes) {
  const total = (name) => changes.reduce((sum, change) => sum + change[name].length, 0);
  const [joined, gone] = [total("joined"), total("gone")];
  return [joined && `+${joined}`, gone && `−${gone}`].filter(Boolean).join(" ") || "±0";
}

/** "Step 95: group 1 gone. 2 groups, generation 3." */
export function titleOf({ step, joined, gone, size, number }) {
  const parts = [];
  if (joined.length) parts.push(`${named(joined)} joined`);
  if (gone.length) parts.push(`${named(gone)} gone`);
  const what = parts.join(", ") || "the same groups met again";
  return `Step ${count(step)}: ${what}. ${numGroups(size)}, generation ${number}.`;
}

const named = (groups) => (groups.length === 1 ? `group ${groups[0]}` : `groups ${numberList(groups)}`);

/**
 * Bring marks that would cover each other together.
 * @param {{change: object, x: number}[]} placed in order of `x`, in pixels
 * @param {number} room pixels that a mark takes
 * @returns {{x: number, changes: object[]}[]}
 */
export function clustersOf(placed, room) {
  const clusters = [];
  for (const { change, x } of placed) {
    const last = clusters.at(-1);
    if (last && x - last.x < room) last.changes.push(change);
    else clusters.push({ x, changes: [change] });
  }
  return clusters;
}
