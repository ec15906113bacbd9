// Numbers, times and durations as short text; the same forms as the command line's.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 12800 → "12,800" */
export const count = (value) => whole.format(value);

/** 1, "node" → "1 node"; 3, "node" → "3 nodes" */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** 1 → "1 group", 3 → "3 groups" */
export const numGroups = (value) => counted(value, "group");

/** Tokens per second with three digits: 45210 → "45.2k"; a dash if unknown. */
export function rate(value) {
  if (!Number.isFinite(value)) return "–";
  // Rounded before the unit is chosen, so that 999.7 becomes 1k and not 1000.
  const rounded = Number(value.toPrecision(3));
  for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (rounded >= unit) return `${Number((rounded / unit).toPrecision(3))}${name}`;
  }
  return rounded >= 10 ? rounded.toFixed(0) : String(Number(rounded.toPrecision(2)));
}

/** A loss with four decimals; a dash if unknown. A diverged one arrives as text: "NaN". */
export const loss = (value) => (Number.isFinite(value) ? value.toFixed(4) : String(value ?? "–"));

/** 0.9731 → "97.3 %"; a dash if unknown. */
export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "–");

/** Bytes in their binary unit: 3221225472 → "3 GiB". */
export function bytes(value) {
  for (const [unit, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (value >= unit) return `${Number((value / unit).toPrecision(3))} ${name}`;
  }
  return `${Math.round(value)} B`;
}

/** Seconds of a step: 0.0123 → "12.3 ms", 2.5 → "2.5 s". */
export const shortTime = (seconds) =>
  seconds < 1 ? `${Number((1000 * seconds).toPrecision(3))} ms` : `${Number(seconds.toPrecision(3))} s`;

/** A duration in its two largest units: 200 → "3 min 20 s". */
export function duration(seconds) {
  const total = Math.max(0, Math.round(seconds));
  const minutes = Math.floor(total / 60);
  const hours = Math.floor(total / 3600);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${total % 60} s` : `${total} s`;
}

/** Seconds since the epoch → the local time of day. */
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

/** Seconds since the epoch → the local day and time. */
export const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** [0, 1, 2, 5] → "0–2, 5" */
export function numberList(numbers) {
  const runs = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}
