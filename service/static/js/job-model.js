// What the page knows of the selected job. Two sources meet here: snapshots (`GET /jobs/{id}`) say
// where the job and its groups stand now; events bring steps and the log. Replayed history therefore
// never turns the picture back: it only adds to the charts and the log.

import { changesOf } from "./marks.js";
import { Series } from "./series.js";

const RECENT_STEPS = 20;

export class JobModel {
  constructor(detail) {
    this.step = 0;
    this.last = null;
    this.goodput = null;
    this.mfu = null;
    this.series = new Series();
    this.recent = [];
    this.generations = new Map();
    this.changes = [];
    this.log = [];
    this.sequence = 0;
    this.takeDetail(detail);
  }

  takeDetail(detail) {
    this.detail = detail;
    this.step = Math.max(this.step, detail.step);
    for (const generation of detail.status?.generations ?? []) this.#takeGeneration(generation);
  }

  /** Take the answer of `GET /jobs/{id}/throughput`. */
  takeThroughput({ records, goodput, mfu, first_time: firstTime }) {
    this.series.firstTime = firstTime ?? null;
    for (const record of records) this.takeRecord(record);
    this.goodput = goodput ?? null;
    this.mfu = mfu ?? null;
  }

  takeEvent(event) {
    if (event.sequence <= this.sequence) return;
    this.sequence = event.sequence;
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

  /** Events up to this number, of whatever kind, need not come any more. */
  passOver(sequence) {
    this.sequence = Math.max(this.sequence, sequence);
  }

  /** Take one committed step; records may come twice and out of order. */
  takeRecord(record) {
    if (this.series.take(record) !== "newest") return;
    if (this.last && record.step < this.last.step) this.step = record.step + 1; // back to a checkpoint
    this.last = record;
    this.recent.push(record);
    if (this.recent.length > RECENT_STEPS) this.recent.shift();
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

  /** Share of the time in which workers wait for each other; null where it is not measured. */
  get communicationShare() {
    const values = this.#recentOfGeneration().map(communicationShareOf).filter(Number.isFinite);
    return values.length ? median(values) : null;
  }

  /** Seconds to the last step at the present pace; null while the job is not training. */
  get remaining() {
    const values = this.#recentOfGeneration().map((record) => record.step_s);
    if (this.detail.state !== "running" || !values.length) return null;
    return median(values) * Math.max(0, this.detail.steps - this.step);
  }

  #recentOfGeneration() {
    return this.recent.filter((record) => record.generation === this.last.generation);
  }

  #takeGeneration(generation) {
    // The snapshot may be newer than a replayed announcement: never forget the first step.
    const known = this.generations.get(generation.number);
    if (known && (known.step !== null || generation.step === null)) return;
    this.generations.set(generation.number, generation);
    this.changes = changesOf(this.generations.values());
  }
}

/** Of a point of the history, or of one step. */
function communicationShareOf({ communication_share: share, communication_s: seconds, step_s: whole }) {
  return share ?? (seconds ?? NaN) / whole;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
