"""A thread that runs collectives in the order in which they are given, beside the computation.

gloo has no streams: a collective of several stages would hold up the thread that computes. Each
kind of collective (gathers, scatters, the second hop) has a thread and process groups of its own,
so that on every worker the collectives of one process group run in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

__all__ = ["CommThread", "PendingWork"]


class PendingWork(dist.Work):
    """A collective under way on a `CommThread`; FSDP2 waits for subclasses of `Work` alone."""

    def __init__(self, future: Future[None]):
        super().__init__()
        self._future = future

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the collective has ended.

        Raises:
            RuntimeError: It failed; the error is the collective's own.
        """
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
    """

    def __init__(self, name: str, depth: int | None = None):
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._room = threading.Semaphore(depth) if depth is not None else None

    def submit(self, job: Callable[[], None]) -> PendingWork:
        """Queue a job; waits while `depth` jobs are unfinished."""
        if self._room is None:
            return PendingWork(self._executor.submit(job))
        self._room.acquire()
        return PendingWork(self._executor.submit(self._run, job))

    def _run(self, job: Callable[[], None]) -> None:
        assert self._room is not None
        try:
            job()
        finally:
            self._room.release()

    def close(self) -> None:
        """End the thread after the job under way; those that wait are dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)
