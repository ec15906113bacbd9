// Goodput: the share of the time since the first committed step that went into steps of usual length,
// as `GET /jobs/{id}/throughput` counts it, for every point of the history.

const USUAL_FACTOR = 1.5;

/**
 * A step counts whole up to 1.5 times the median of the steps with as many groups, and with that
 * median beyond. The time begins with the first commit, so its step does not count.
 *
 * @param {number[]} step ascending
 * @param {number[]} time seconds since the epoch at which each was committed
 * @param {number[]} seconds length of a step, as the mean where a point stands for several
 * @param {number[]} groups number of partition groups
 * @returns {(number | null)[]} from 0 to 1; null where no time has passed yet
 */
export function goodputOf(step, time, seconds, groups) {
  const usual = medians(seconds, groups);
  let good = 0;
  return step.map((at, index) => {
    if (index === 0) return null;
    const median = usual.get(groups[index]);
    const counted = seconds[index] <= USUAL_FACTOR * median ? seconds[index] : median;
    good += counted * (at - step[index - 1]);
    const elapsed = time[index] - time[0];
    return elapsed > 0 ? Math.min(1, good / elapsed) : null;
  });
}

function medians(seconds, groups) {
  const bySize = new Map();
  for (let index = 1; index < seconds.length; index += 1) {
    if (!bySize.has(groups[index])) bySize.set(groups[index], []);
    bySize.get(groups[index]).push(seconds[index]);
  }
  const middle = (values) => Float64Array.from(values).sort()[(values.length - 1) >> 1];
  return new Map([...bySize].map(([size, values]) => [size, middle(values)]));
}
