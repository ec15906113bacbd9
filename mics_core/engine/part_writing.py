"""Writing one group's part of a checkpoint, on a thread beside training.

While a run trains, storage is touched on that thread alone, and it may do whatever storage does:
refuse, raise errors of its own making, or never answer. The thread is a daemon, so one that never
comes back holds up no exit, and it has a low priority: it takes what training leaves of the
processors.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint_state import cause_of
from mics_core.errors import CheckpointError
from mics_core.spec.folders import CheckpointFolder, Part

__all__ = ["Background", "copy_of", "write_part"]

_NICENESS = 10
"""Of threads that write: a tenth of the processor where training would have all of it."""


class Background:
    """A thread of low priority that does one thing after the other."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], str], Future[str]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def submit(self, work: Callable[[], str]) -> Future[str]:
        """Do `work` when all before it is done.

        Args:
            work: Returns what went wrong, or nothing.

        Returns:
            What `work` returns, or the error that it raised in words.
        """
        done: Future[str] = Future()
        self._queue.put((work, done))
        return done

    def close(self) -> None:
        """End the thread when all is done that was submitted; does not wait for it."""
        self._queue.put(None)

    def _run(self) -> None:
        # On Linux a thread has a priority of its own, and may always lower it.
        me = threading.get_native_id()
        niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, me))
        os.setpriority(os.PRIO_PROCESS, me, niceness)
        while (item := self._queue.get()) is not None:
            work, done = item
            try:
                problem = work()
            except BaseException as error:
                # Of torch's CheckpointException and asyncio's CancelledError neither is an
                # Exception, and nothing is above this thread that could take in any of them.
                problem = cause_of(error)
            # The work holds the copy of the shards, and the next item may be long in coming.
            del item, work
            done.set_result(problem)


def copy_of(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the states in host memory, which training does not change any more."""
    copied: dict[str, Any] = BlockingAsyncStager().stage(state)
    return copied


def write_part(
    directory: str,
    step: int,
    part: Part,
    state: dict[str, Any] | str,
    partition: PartitionGroup,
    channel: dist.ProcessGroup,
) -> str:
    """Write and record a part; all workers of the partition group must call it.

    Args:
        directory: The folder of the job's checkpoints.
        step: Steps committed in it.
        part: The part, its files still unknown.
        state: This worker's shards of it, or why it has none.
        partition: The partition group.
        channel: Its process group for this alone.

    Returns:
        What went wrong, or nothing.
    """
    problem, writer = state if isinstance(state, str) else "", None
    if not problem:
        try:
            writer = _prepare(directory, step, part, makes_room=partition.rank == 0)
        except BaseException as error:
            problem = cause_of(error)
    # All take the same way, whoever saw the error: what follows are collectives.
    problem = next((found for found in partition.share(problem, channel) if found), "")
    if problem:
        return problem
    assert not isinstance(state, str)
    save(state, storage_writer=writer, process_group=channel)
    if partition.rank == 0:
        CheckpointFolder(directory).end_part(step, part)
    return ""


def _prepare(directory: str, step: int, part: Part, *, makes_room: bool) -> _Writer:
    folder = CheckpointFolder(directory)
    if makes_room:
        folder.begin_part(step, part)
    # Nothing is to be copied ahead: all of it is in host memory.
    return _Writer(folder.path_of_part(step, part), per_thread_copy_ahead=0)


class _Writer(FsspecWriter):
    """Has the storage's errors in words.

    torch sends them to the other workers, and many cannot be pickled, or not be read again: such a
    one would leave the others waiting.
    """

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See `StorageWriter`."""
        with _in_words():
            return super().prepare_local_plan(plan)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """See `StorageWriter`; with one thread, as here, all is written on return."""
        with _in_words():
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """See `StorageWriter`."""
        with _in_words():
            super().finish(metadata, results)


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        raise CheckpointError(cause_of(error)) from None
