// Keeps work from running more often than it is worth: drawing at most once a frame, asking the
// service at most once a pause.

/** Return a function that has `draw` run once in the next frame, however often it is called. */
export function onFrame(draw) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      draw();
    });
  };
}

/**
 * Return a function that runs the asynchronous `task` at once, then at most once each `pause`
 * milliseconds. A call in between is not lost: one more run follows.
 */
export function spaced(task, pause) {
  let isBusy = false;
  let isDue = false;
  async function run() {
    isBusy = true;
    isDue = false;
    await task();
    setTimeout(() => {
      isBusy = false;
      if (isDue) run();
    }, pause);
  }
  return () => {
    if (isBusy) isDue = true;
    else run();
  };
}

/** Return a function that runs `task` once nobody has called it for `pause` milliseconds. */
export function later(task, pause) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(task, pause);
  };
}
