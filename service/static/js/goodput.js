// Goodput: the share of the time since the first committed step that went into steps of usual length.
// `GET /jobs/{id}/throughput` tells it for each point of the history, from all steps that the point
// stands for; steps that come live are counted on from there in the same way.

const USUAL_FACTOR = 1.5;

/**
 * A step counts whole up to 1.5 times the median of the steps with as many groups, and with that
 * median beyond. The time begins with the first commit, so its step does not count.
 *
 * @param {number[]} step ascending
 * @param {number[]} time seconds since the epoch at which each was committed
 * @param {number[]} seconds length of a step, as the mean where a point stands for several
 * @param {number[]} groups number of partition groups
 * @param {(number | null)[]} told goodput as the service counted it; null for a step that came live
 * @param {number | null} firstTime when the first step was committed; null if that is the first here
 * @returns {(number | null)[]} from 0 to 1; null where no time has passed yet
 */
export function goodputOf(step, time, seconds, groups, told, firstTime) {
  const usual = medians(seconds, groups);
  const start = firstTime ?? time[0];
  let good = 0;
  return step.map((at, index) => {
    const elapsed = time[index] - start;
    if (told[index] !== null) {
      good = told[index] * elapsed;
      return told[index];
    }
    if (index === 0) return null;
    const median = usual.get(groups[index]);
    const counted = seconds[index] <= USUAL_FACTOR * median ? seconds[index] : median;
    good += counted * (at - step[index - 1]);
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
