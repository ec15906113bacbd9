"""The second hop: each bucket's all-reduce over the replication group, once a step.

It runs on threads of its own, so that it overlaps the last micro-batch's backward: a bucket leaves
as soon as its last unit is complete. Buckets leave in the order of the buffer on every worker, also
where units complete in another order, because all members must call the same collectives in the
same order. Each stage of the all-reduce has a thread: while one bucket is between nodes, the next
is summed up inside the node and the one before is handed round there.

[Note: the second hop of a GPU's gradient]
The stages send from the host's memory: gloo's messages know no other. A bucket of a GPU is copied
there by the first stage's thread, and back by the last one's, on a stream of their own, so that a
copy waits for nothing that was launched after the bucket was complete.

[Note: the gradient before it crosses]
The stages work in place, so a hop that breaks leaves sums of some members in the buffer, in another
bucket of all, and in a third of none. A worker that is to go on with its own gradient sets each
bucket aside before its first stage: a copy in the host's memory, made beside backward.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch

from mics_core.comm.replication import NUM_STAGES, ReplicationGroup
from mics_core.comm.threads import CommThread, PendingWork
from mics_core.engine.gradients import GradientBuffer
from mics_core.errors import ReplicationError

__all__ = ["SecondHop"]

_ACROSS = 1
"""The stage between nodes, whose process group also carries the summary."""


class SecondHop:
    """Sends a gradient buffer across the replication group.

    Failures are noted, not raised: an exception in a hook of backward would leave gradients behind
    that spoil what is in hand. `finish` tells of them.

    Args:
        buffer: The gradient of a step.
    """

    def __init__(self, buffer: GradientBuffer):
        self._buffer = buffer
        self._sets_aside = False
        self._aside: dict[int, torch.Tensor] = {}
        self._is_aside: set[int] = set()
        self._copies = _HostCopies(buffer) if buffer.flat.is_cuda else None
        self._threads = [CommThread(f"second-hop-{stage}") for stage in range(NUM_STAGES)]
        self._lock = threading.Lock()
        self._replication: ReplicationGroup | None = None
        self._complete = [False] * len(buffer.units)
        self._next_bucket = 0
        self._pending: list[PendingWork] = []
        self._rows: list[list[float]] = []
        self._left = threading.Semaphore(0)
        self._num_sent = 0
        self._error = ""
        self._fault: BaseException | None = None

    def keep_gradients(self) -> None:
        """From now on let steps go on; see [Note: the gradient before it crosses]."""
        self._sets_aside = True

    def begin_step(self, parts: Sequence[Sequence[int]], *, goes_on: bool) -> None:
        """Begin a step, after the generation's start: up to it others may read the buffer.

        Args:
            parts: Each member's micro-batches, by rank, which make no difference here.
            goes_on: Whether it is the same step again, with this worker's own gradient as it was
                before it crossed, if it did.
        """
        if goes_on:
            for index in self._is_aside:
                self._buffer.of_bucket(index).copy_(self._aside[index])
        self._is_aside.clear()

    def begin(self, replication: ReplicationGroup, summary: Callable[[], list[float]]) -> None:
        """Begin the last micro-batch's backward.

        Args:
            replication: The replication group that the gradient crosses.
            summary: Computes this worker's summary of the step, which is gathered first.
        """
        self._replication = replication
        # A unit that is frozen as a whole has no gradient and never reports.
        self._complete = [unit.num_elements == 0 for unit in self._buffer.units]
        self._next_bucket, self._error, self._rows = 0, "", []
        self._left = threading.Semaphore(0)
        self._num_sent = 0
        self._pending = [self._threads[_ACROSS].submit(lambda: self._gather(summary))]

    def unit_complete(self, index: int) -> None:
        """Note that a unit's sum over this group is complete; called from any thread."""
        with self._lock:
            self._complete[index] = True
            self._launch_complete_buckets()

    def finish(self) -> tuple[list[list[float]], str]:
        """Send what has not been sent, and wait for everything.

        Returns:
            The summaries of all members by rank, and the first error; empty without one. With an
            error the buffer is undefined, up to a step that goes on with it.
        """
        with self._lock:
            # A unit that took no part in the loss never reported; its gradient is zero.
            self._complete = [True] * len(self._complete)
            self._launch_complete_buckets()
        for work in self._pending:
            work.wait()
        for _ in range(self._num_sent):
            self._left.acquire()
        if not self._error:
            self._end_reading()
        self._pending, self._replication = [], None
        if self._fault is not None:
            raise self._fault
        return self._rows, self._error

    def _end_reading(self) -> None:
        assert self._replication is not None
        try:
            self._replication.end_reading()
        except ReplicationError as error:
            self._error = str(error)

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.close()

    def _launch_complete_buckets(self) -> None:
        buckets = self._buffer.buckets
        while self._next_bucket < len(buckets):
            index = self._next_bucket
            if not all(self._complete[unit] for unit in buckets[index].units):
                return
            self._next_bucket += 1
            event = _record_event(self._buffer.flat.device)
            self._num_sent += 1
            self._threads[0].submit(partial(self._run_stage, 0, index, event))

    def _gather(self, summary: Callable[[], list[float]]) -> None:
        assert self._replication is not None
        try:
            self._rows = self._replication.gather_doubles(summary())
        except ReplicationError as error:
            self._error = str(error)

    def _run_stage(self, stage: int, index: int, event: torch.cuda.Event | None) -> None:
        """Run one stage of a bucket and hand it on; after an error buckets only pass through."""
        assert self._replication is not None
        try:
            if not self._error:
                if event is not None:
                    event.synchronize()
                self._run_stage_of(self._replication, stage, index)
        except ReplicationError as error:
            self._error = self._error or str(error)
        except BaseException as fault:
            self._fault, self._error = fault, repr(fault)
        finally:
            if stage + 1 < NUM_STAGES:
                # Each thread takes the buckets in their order and hands them on in it.
                self._threads[stage + 1].submit(partial(self._run_stage, stage + 1, index, None))
            else:
                self._left.release()

    def _run_stage_of(self, replication: ReplicationGroup, stage: int, index: int) -> None:
        if replication.size == 1:
            return
        copies = self._copies
        if stage == 0 and copies is not None:
            copies.take(index)
        bucket = self._buffer.of_bucket(index) if copies is None else copies.of_bucket(index)
        if stage == 0 and self._sets_aside:
            self._set_aside(index, bucket)
        replication.run_stage(stage, bucket)
        if stage + 1 == NUM_STAGES and copies is not None:
            copies.put_back(index)

    def _set_aside(self, index: int, bucket: torch.Tensor) -> None:
        if index not in self._aside:
            self._aside[index] = torch.empty_like(bucket)
        self._aside[index].copy_(bucket)
        self._is_aside.add(index)


class _HostCopies:
    """The buckets of a GPU in the host's memory; see [Note: the second hop of a GPU's gradient]."""

    def __init__(self, buffer: GradientBuffer):
        self._buffer = buffer
        self._is_pinned = buffer.flat.is_cuda
        # One for each direction, for the threads of the first and the last stage.
        self._streams = [
            torch.cuda.Stream(buffer.flat.device) if buffer.flat.is_cuda else None for _ in range(2)
        ]
        self._copies: dict[int, torch.Tensor] = {}

    def of_bucket(self, index: int) -> torch.Tensor:
        """Return a bucket's copy."""
        return self._copies[index]

    def take(self, index: int) -> None:
        """Copy a bucket to the host."""
        bucket = self._buffer.of_bucket(index)
        if index not in self._copies:
            self._copies[index] = torch.empty(
                bucket.shape, dtype=bucket.dtype, pin_memory=self._is_pinned
            )
        _copy(bucket, self._copies[index], self._streams[0])

    def put_back(self, index: int) -> None:
        """Copy what became of a bucket back."""
        _copy(self._copies[index], self._buffer.of_bucket(index), self._streams[1])


def _copy(source: torch.Tensor, target: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
    with torch.cuda.stream(stream):
        target.copy_(source, non_blocking=stream is not None)
    if stream is not None:
        stream.synchronize()


def _record_event(device: torch.device) -> torch.cuda.Event | None:
    """Mark the point of the current stream at which a bucket is complete."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
