// What the page knows of the selected job. Two sources meet here: snapshots (`GET /jobs/{id}`) say
// where the job and its groups stand now; events bring steps and the log. Replayed history therefore
// never turns the picture back: it only adds to the charts and the log.

const MAX_POINTS = 20000;
const RECENT_STEPS = 20;

export class JobModel {
  constructor(detail) {
    this.step = 0;
    this.last = null;
    this.series = { step: [], rate: [], loss: [], groups: [], generation: [] };
    this.recent = [];
    this.generations = new Map();
    this.log = [];
    this.takeDetail(detail);
  }

  takeDetail(detail) {
    this.detail = detail;
    this.step = Math.max(this.step, detail.step);
    for (const generation of detail.status?.generations ?? []) this.#takeGeneration(generation);
  }

  takeEvent(event) {
    if (event.kind === "step") {
      this.takeRecord(event.record);
      return;
    }
    if (event.kind === "generation") {
      this.#takeGeneration(event.generation);
      // Announced, then entered: one entry of the log, which learns its first step.
      const entry = this.log.find(
        (known) => known.kind === "generation" && known.generation.number === event.generation.number,
      );
      if (entry) {
        entry.generation = event.generation;
        return;
      }
    }
    this.log.push(event);
  }

  /** Take one committed step; records may come twice and out of order. */
  takeRecord(record) {
    const { step } = this.series;
    const place = record.step > (step.at(-1) ?? -1) ? step.length : firstNotBelow(step, record.step);
    if (step[place] === record.step) return;
    this.#insert(place, record);
    if (place === step.length - 1) {
      this.last = record;
      this.recent.push(record);
      if (this.recent.length > RECENT_STEPS) this.recent.shift();
    }
    this.step = Math.max(this.step, record.step + 1);
  }

  get loss() {
    return this.last ? this.last.loss : this.detail.loss;
  }

  /** Median over the last steps of the newest generation. */
  get tokensPerSecond() {
    const values = this.#recentOfGeneration().map((record) => record.tokens_per_s);
    return values.length ? median(values) : this.detail.tokens_per_s;
  }

  /** Seconds to the last step at the present pace; null while the job is not training. */
  get remaining() {
    const values = this.#recentOfGeneration().map((record) => record.step_s);
    if (this.detail.state !== "running" || !values.length) return null;
    return median(values) * Math.max(0, this.detail.steps - this.step);
  }

  /** Generations that have been entered, as marks of the charts. */
  get marks() {
    return [...this.generations.values()].filter((generation) => generation.step !== null);
  }

  #recentOfGeneration() {
    return this.recent.filter((record) => record.generation === this.last.generation);
  }

  #takeGeneration(generation) {
    // The snapshot may be newer than a replayed announcement: never forget the first step.
    const known = this.generations.get(generation.number);
    if (known && known.step !== null && generation.step === null) return;
    this.generations.set(generation.number, generation);
  }

  #insert(place, record) {
    const { series } = this;
    series.step.splice(place, 0, record.step);
    series.rate.splice(place, 0, finiteOrNull(record.tokens_per_s));
    series.loss.splice(place, 0, finiteOrNull(record.loss));
    series.groups.splice(place, 0, record.num_groups);
    series.generation.splice(place, 0, record.generation);
    if (series.step.length > MAX_POINTS) this.#thin();
  }

  /** Keep every second point: more than the screen's pixels show nothing. */
  #thin() {
    const isKept = (_, index) => index % 2 === 0 || index === this.series.step.length - 1;
    const thinned = Object.entries(this.series).map(([name, values]) => [name, values.filter(isKept)]);
    this.series = Object.fromEntries(thinned);
  }
}

// JSON has no NaN: a diverged loss arrives as null or as text, and leaves a gap in the chart.
const finiteOrNull = (value) => (Number.isFinite(value) ? value : null);

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function firstNotBelow(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
