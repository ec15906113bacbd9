"""How fast a worker gets on while all of them are busy, as they are in training.

[Note: all at once]
Workers may share cores: those of one node in a test, or more workers than cores. One that leaves a
barrier before the others, or goes on for longer, would have their share of the processor as well,
and a short measurement would be of that: measured one after the other by the system's scheduler,
eight workers on two cores each seem to have a core. So the clock runs once all have begun, and who
is done works on until all are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch.distributed as dist

__all__ = ["calls_per_s"]

_LEAST_CALLS = 3


def calls_per_s(work: Callable[[], None], seconds: float, control: dist.ProcessGroup) -> float:
    """Return how often a second this worker gets through `work` while all do theirs.

    All ranks of `control` must call it; see [Note: all at once].

    Args:
        work: What to do; it returns when it is done. Its first calls do not count.
        seconds: How long to measure; three calls at least.
        control: A gloo group over all ranks.
    """
    work()  # loads what it needs
    _until_all_are_here(work, control)
    start, count = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - start) < seconds or count < _LEAST_CALLS:
        work()
        count += 1
    _until_all_are_here(work, control)
    return count / elapsed_s


def _until_all_are_here(work: Callable[[], None], control: dist.ProcessGroup) -> None:
    arrival = dist.barrier(group=control, async_op=True)
    while not arrival.is_completed():
        work()
    arrival.wait()
