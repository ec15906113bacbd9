// The steps of a job as columns, in order of the step, as the charts take them.

import { goodputOf } from "./goodput.js";

const MAX_POINTS = 20000;

export class Series {
  step = [];
  time = [];
  seconds = [];
  rate = [];
  loss = [];
  groups = [];
  /** Goodput as the service counted it; null for steps that came live. */
  told = [];
  /** When the first step of the run was committed; null if that is not known. */
  firstTime = null;
  #goodput = [];
  #isStale = false;

  /**
   * Take one committed step, or a point that stands for several. Records may come twice and out of
   * order; one that was committed again later, after a return to a checkpoint, ends what came after.
   * @returns {"old" | "past" | "newest"} whether it was known, or where it went
   */
  take(record) {
    const { step } = this;
    if (step.length && record.step <= step.at(-1) && record.time > this.time.at(-1)) {
      this.#cut(firstNotBelow(step, record.step));
    }
    const place = record.step > (step.at(-1) ?? -1) ? step.length : firstNotBelow(step, record.step);
    if (step[place] === record.step) return "old";
    step.splice(place, 0, record.step);
    this.time.splice(place, 0, record.time);
    this.seconds.splice(place, 0, record.step_s);
    this.rate.splice(place, 0, finiteOrNull(record.tokens_per_s));
    this.loss.splice(place, 0, finiteOrNull(record.loss));
    this.groups.splice(place, 0, record.num_groups);
    this.told.splice(place, 0, record.goodput ?? null);
    this.#isStale = true;
    if (step.length > MAX_POINTS) this.#thin();
    return place >= this.step.length - 1 ? "newest" : "past";
  }

  /** Goodput since the start, for each point. */
  get goodput() {
    if (this.#isStale) {
      this.#goodput = goodputOf(
        this.step, this.time, this.seconds, this.groups, this.told, this.firstTime,
      );
      this.#isStale = false;
    }
    return this.#goodput;
  }

  get #columns() {
    return ["step", "time", "seconds", "rate", "loss", "groups", "told"];
  }

  #cut(from) {
    for (const name of this.#columns) this[name].length = from;
  }

  /** Keep every second point: more than the screen's pixels show nothing. */
  #thin() {
    this.told = this.goodput; // what is left out still counts
    const last = this.step.length - 1;
    const isKept = (_, index) => index % 2 === 0 || index === last;
    for (const name of this.#columns) this[name] = this[name].filter(isKept);
  }
}

// JSON has no NaN: a diverged loss arrives as null or as text, and leaves a gap in the chart.
const finiteOrNull = (value) => (Number.isFinite(value) ? value : null);

function firstNotBelow(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
