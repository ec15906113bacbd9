// Follows a job's events. The browser reconnects a cut stream by itself, with the sequence number of
// the last event; only where it gives up (the service answered with an error) is it asked again here.

import { eventsUrl } from "./api.js";

const KINDS = ["state", "group", "generation", "step", "scale", "checkpoint", "regroup"];
const RETRY_MS = 3000;
const FINAL = new Set(["finished", "cancelled", "failed"]);

export const isFinal = (state) => FINAL.has(state);

/**
 * @param {string} jobId
 * @param {number} after sequence number of the last event that is known
 * @param {{onEvent: (event: object) => void, onConnection: (state: string) => void,
 *          isOver: () => boolean}} listeners `onConnection` gets "live", "reconnecting" or "ended";
 *          `isOver` says whether the job has ended, so that a closed stream is no fault.
 * @returns {() => void} stops following
 */
export function follow(jobId, after, { onEvent, onConnection, isOver }) {
  let last = after;
  let source = null;
  let timer = null;

  function stop() {
    clearTimeout(timer);
    source?.close();
  }

  function end() {
    stop();
    onConnection("ended");
  }

  function take(message) {
    const event = JSON.parse(message.data);
    if (event.sequence <= last) return;
    last = event.sequence;
    onEvent(event);
    if (event.kind === "state" && isFinal(event.state)) end();
  }

  function open() {
    source = new EventSource(eventsUrl(jobId, last));
    source.onopen = () => onConnection("live");
    source.onerror = () => {
      if (isOver()) {
        end();
        return;
      }
      onConnection("reconnecting");
      if (source.readyState === EventSource.CLOSED) timer = setTimeout(open, RETRY_MS);
    };
    for (const kind of KINDS) source.addEventListener(kind, take);
  }

  open();
  return stop;
}
