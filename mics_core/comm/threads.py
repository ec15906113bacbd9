"""A thread that runs collectives in the order in which they are given, beside the computation.

gloo has no streams: a collective of several stages would hold up the thread that computes. Each
kind of collective (gathers, scatters, the second hop) has a thread and process groups of its own,
so that on every worker the collectives of one process group run in the same order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

__all__ = ["CommThread", "PendingWork", "Waits"]


class Waits:
    """Adds up how long the thread that computes has waited for collectives."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside as waiting."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - begin

    def take(self) -> float:
        """Return the seconds since the last call, and begin anew."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class PendingWork(dist.Work):
    """A collective under way on a `CommThread`; FSDP2 waits for subclasses of `Work` alone.

    Args:
        future: Its end.
        waits: Told how long its end was waited for.
    """

    def __init__(self, future: Future[None], waits: Waits):
        super().__init__()
        self._future = future
        self._waits = waits

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the collective has ended.

        Raises:
            RuntimeError: It failed; the error is the collective's own.
        """
        with self._waits.timed():
            self._future.result(timeout.total_seconds() if timeout else None)
        return True

    def is_completed(self) -> bool:
        """Whether it has ended."""
        return self._future.done()


class CommThread:
    """Runs jobs one after the other.

    Args:
        name: Shows in debuggers.
        depth: Most jobs that may be under way or waiting; none for no bound. Jobs hold the buffers
            that they work on, so a bound on them is a bound on memory.
        waits: Told how long jobs were waited for; none if nobody asks.
    """

    def __init__(self, name: str, depth: int | None = None, waits: Waits | None = None):
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._room = threading.Semaphore(depth) if depth is not None else None
        self._waits = waits or Waits()

    def submit(self, job: Callable[[], None]) -> PendingWork:
        """Queue a job; waits while `depth` jobs are unfinished."""
        if self._room is None:
            return PendingWork(self._executor.submit(job), self._waits)
        with self._waits.timed():
            self._room.acquire()
        return PendingWork(self._executor.submit(self._run, job), self._waits)

    def _run(self, job: Callable[[], None]) -> None:
        assert self._room is not None
        try:
            job()
        finally:
            self._room.release()

    def close(self) -> None:
        """End the thread after the job under way; those that wait are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)
