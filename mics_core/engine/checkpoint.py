"""Durable checkpoints: written in the background by all partition groups together.

Every group holds the same model states, so each writes those of its share of the parameters, with
`torch.distributed.checkpoint`, and no shard is written twice. Steps go on meanwhile; only the copy
of the shards in host memory waits. `mics_core.spec.folders` says how a checkpoint lies there.

[Note: when a checkpoint is complete]
Nobody asks anybody. Each worker puts into the summary of every step how far its writing is; the
smallest of these numbers tells all workers, at the same step boundary, that all have finished or
that one has failed. The first group's first worker then makes the checkpoint visible. A group that
is lost takes its part with it: the checkpoint is given up, and the next one is whole again.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

from torch import nn, optim
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import async_save

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint_state import cause_of, part_of, state_dict_of
from mics_core.spec.folders import LONGEST_WRITE_S, CheckpointFolder, Part
from mics_core.spec.job import CheckpointSpec

__all__ = ["NOTHING_TO_WRITE", "CheckpointReport", "Checkpointer", "share_of"]

logger = logging.getLogger(__name__)

NOTHING_TO_WRITE = math.inf
"""What a worker that writes no part says of its progress."""
_UNDER_WAY = 0.0
_NICENESS = 10
"""Of threads that write: a tenth of the processor where training would have all of it."""
_LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """How a checkpoint ended.

    Args:
        step: Steps committed in it.
        path: Its folder.
        error: What went wrong, or empty if it is complete.
    """

    step: int
    path: str
    error: str


@dataclass(slots=True)
class _Writing:
    """A checkpoint under way, as this worker sees it.

    Args:
        step: Steps committed in it.
        groups: Ids of the groups that write it, by part.
        written: Done when this worker's part of it is written and recorded, with the problem or
            nothing.
        is_given_up: Whether it has been reported as failed; its end is waited for all the same.
    """

    step: int
    groups: tuple[int, ...]
    written: Future[str]
    is_given_up: bool = False


class Checkpointer:
    """Writes one worker's part of the checkpoints.

    All workers of the partition group must build it, and call its methods together.

    Args:
        spec: Where, how often and how many.
        partition: The worker's partition group.
        group_id: Its id.
        report: Told how each checkpoint ended, by the first worker of the first group that wrote
            it; called from a background thread.
    """

    def __init__(
        self,
        spec: CheckpointSpec,
        partition: PartitionGroup,
        group_id: int,
        report: Callable[[CheckpointReport], None],
    ):
        self._spec = spec
        self._partition = partition
        self._group_id = group_id
        self._report = report
        self._folder = CheckpointFolder(spec.directory) if spec.directory is not None else None
        self._writing: _Writing | None = None
        self.last_step: int | None = None
        """Steps committed in the checkpoint that was begun last."""
        self._background = ThreadPoolExecutor(1, "checkpoint", _give_way)

    @property
    def is_on(self) -> bool:
        """Whether the job writes checkpoints."""
        return self._folder is not None

    def is_due(self, committed_steps: int) -> bool:
        """Whether a checkpoint follows this many committed steps, by the interval."""
        return self.is_on and committed_steps % self._spec.interval_steps == 0

    def begin(
        self,
        committed_steps: int,
        model: nn.Module,
        optimizer: optim.Optimizer,
        groups: tuple[int, ...],
        fingerprint: str,
    ) -> None:
        """Begin a checkpoint; return as soon as this worker's shards are copied.

        All workers of all groups must call it at the same step.

        Args:
            committed_steps: Steps that the states have seen.
            model: The sharded model.
            optimizer: Its optimizer.
            groups: Ids of the groups of the generation; each writes one part.
            fingerprint: Tells these states from others of that step, of an earlier attempt say.
        """
        assert self._folder is not None
        number, is_first = groups.index(self._group_id), self._group_id == groups[0]
        if self._writing is not None:
            if is_first:
                self._tell(
                    committed_steps,
                    f"It was left out, for that of step {self._writing.step} is still being"
                    " written. Write less often, or to faster storage.",
                )
            return
        self.last_step = committed_steps
        problem = self._prepare(committed_steps, number)
        written: Future[str] = Future()
        self._writing = _Writing(committed_steps, groups, written)
        if problem is not None:
            written.set_result(problem)
            return
        state = state_dict_of(model, optimizer)
        names = share_of(_sizes(state["model"]), number, len(groups))
        part = Part(number, tuple(names), (), fingerprint)
        try:
            saved = cast(
                "Future[Any]",
                async_save(
                    part_of(state, names, with_groups=number == 0),
                    storage_writer=_Writer(self._folder.path_of_part(committed_steps, number)),
                    process_group=self._partition.background,
                ),
            )
        except (Exception, CheckpointException) as error:
            written.set_result(cause_of(error))
            return
        saved.add_done_callback(lambda future: self._record(committed_steps, part, future, written))

    @property
    def progress(self) -> float:
        """What this worker says in the summary of a step.

        The step of the checkpoint that it has written, its negative if that failed, 0 while it
        writes, `NOTHING_TO_WRITE` if there is none or what it wrote is of no use any more.
        """
        writing = self._writing
        if writing is None:
            return NOTHING_TO_WRITE
        if not writing.written.done():
            return _UNDER_WAY
        if writing.is_given_up:
            return NOTHING_TO_WRITE
        return -float(writing.step) if writing.written.result() else float(writing.step)

    def heard(self, lowest: float) -> None:
        """Take in the lowest progress of all workers of a committed step.

        See [Note: when a checkpoint is complete].
        """
        writing = self._writing
        if writing is None or lowest == _UNDER_WAY:
            return
        if writing.is_given_up:
            # A new one may begin when nobody works on the old one any more.
            if lowest == NOTHING_TO_WRITE:
                self._writing = None
            return
        if lowest < 0:
            problem = writing.written.result() if writing.written.done() else ""
            self._give_up(problem or "Another worker could not write its part; its log says why.")
            return
        assert lowest == writing.step, (lowest, writing.step)
        self._writing = None
        if self._group_id == writing.groups[0] and self._partition.rank == 0:
            self._background.submit(self._publish, writing.step, len(writing.groups))

    def members_changed(self, groups: Sequence[int]) -> None:
        """Give up a checkpoint whose writers are not all among `groups` any more."""
        writing = self._writing
        if writing is None or writing.is_given_up:
            return
        gone = [group for group in writing.groups if group not in groups]
        if gone:
            self._give_up(f"Group {gone[0]} went away while it was written.", groups)

    def finish(self, agree: Callable[[float], float]) -> None:
        """Bring the checkpoint under way to its end, if there is one.

        Args:
            agree: Returns the lowest of all workers' numbers; all of them call it.
        """
        if self._folder is None:
            return
        deadline = monotonic() + LONGEST_WRITE_S
        while True:
            if self._writing is not None:
                wait([self._writing.written], timeout=_LOOK_AGAIN_S)
            is_late = self._writing is not None and monotonic() > deadline
            mine = -math.inf if is_late and self.progress == _UNDER_WAY else self.progress
            lowest = agree(mine)
            if lowest != _UNDER_WAY:
                self.heard(lowest)
                return

    def close(self) -> None:
        """Wait for what this worker writes."""
        if self._writing is not None:
            wait([self._writing.written], timeout=LONGEST_WRITE_S)
        self._background.shutdown(wait=True)

    def _prepare(self, step: int, number: int) -> str | None:
        """Make room for the part; return why it need not or cannot be written, or none."""
        assert self._folder is not None
        problem: str | None = None
        if self._partition.rank == 0:
            try:
                self._folder.begin_part(step, number)
            except OSError as error:
                problem = cause_of(error)
        # Every worker takes the same way, also when only rank 0 saw the error.
        shared: str | None = self._partition.share_from_leader(problem)
        return shared

    def _record(self, step: int, part: Part, saved: Future[Any], written: Future[str]) -> None:
        """Record the part that the group has written."""
        assert self._folder is not None
        error = saved.exception()
        problem = cause_of(error) if error is not None else ""
        try:
            if self._partition.rank == 0 and not problem:
                self._folder.end_part(step, part)
        except OSError as refused:
            problem = cause_of(refused)
        finally:
            written.set_result(problem)

    def _publish(self, step: int, num_parts: int) -> None:
        """Make a whole checkpoint visible, and remove those that are no longer kept."""
        assert self._folder is not None
        problem = ""
        try:
            self._folder.commit(step, num_parts)
            self._folder.prune(self._spec.keep)
        except (OSError, ValueError) as error:
            problem = cause_of(error)
        self._tell(step, problem)

    def _give_up(self, problem: str, groups: Sequence[int] | None = None) -> None:
        """Report that the checkpoint under way failed: the first writer that is left does."""
        writing = self._writing
        assert writing is not None
        writing.is_given_up = True
        left = [group for group in writing.groups if groups is None or group in groups]
        if left and left[0] == self._group_id:
            self._tell(writing.step, problem)

    def _tell(self, step: int, problem: str) -> None:
        assert self._folder is not None
        path = self._folder.path_of(step)
        if self._partition.rank == 0:
            if problem:
                logger.warning("checkpoint %s failed: %s", path, problem)
            self._report(CheckpointReport(step, path, problem))


class _Writer(FsspecWriter):
    """Writes with what training leaves of the processors."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin to write, on the thread that does all of it."""
        _give_way()
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)


def _give_way() -> None:
    """Give the calling thread a low priority, which on Linux is a thread's own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def share_of(sizes: Mapping[str, int], number: int, num_groups: int) -> list[str]:
    """Return the names that one of several groups writes: about as many bytes each.

    The largest first, each to the group that has least: every group comes to the same result.
    """
    loads = [0] * num_groups
    mine = []
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        least = loads.index(min(loads))
        loads[least] += size
        if least == number:
            mine.append(name)
    return sorted(mine)


def _sizes(model_state: Mapping[str, Any]) -> dict[str, int]:
    return {name: value.numel() * value.element_size() for name, value in model_state.items()}
