"""Durable checkpoints: written in the background by all partition groups together.

Every group holds the same model states, so each writes those of its share of the parameters, with
`torch.distributed.checkpoint`, and no shard is written twice. Steps go on meanwhile; only the copy
of the shards in host memory waits. `mics_core.spec.folders` says how a checkpoint lies there.

[Note: when a checkpoint is complete]
Nobody asks anybody. Each worker puts into the summary of every step how far its writing is; the
smallest of these numbers tells all workers, at the same step boundary, that all have finished, or
that one has failed and which. The first group's first worker then makes the checkpoint visible. A
group that is lost takes its part with it: the checkpoint is given up. So it is where a writer has
not begun it, for the generation broke before it had committed that step. The next one begins,
whole, when the smallest number says that nobody works on the one before.
If the group that makes it visible is lost while it does, the parts are all there, and the next of
the writers makes it visible.

[Note: what is left of one that failed]
It is removed by one worker, the first of the writers that are left, once the smallest number says
that nobody works on it: until then some may still write a part, and others, who heard more than
this group did, may be making it visible. What stays all the same, because storage refuses that too
or nobody is left, goes when one of that step or a later one is complete. A group that was stopped
and wakes up may end its attempt late: see [Note: two attempts at one checkpoint] in
`mics_core.spec.folders`.

[Note: storage that never answers]
Nothing of storage is waited for by the steps. A part that is not written after `LONGEST_ANSWER_S`
has failed. Its thread, the process group that it may be in and the copy of the shards are left to
it, and the next checkpoint is written by others; but until that thread comes back no second one is
left behind, so a worker holds two copies at most. A run that ends waits for `LONGEST_WRITE_S`.

[Note: a loss at the end of a checkpoint]
Where all wait for a checkpoint, at the end of a run or before a pause, a group that goes away
breaks the exchange in which they say how far they are. Whoever sees that gives up what is not
written by all, and at the end of a run the groups that are left begin it anew under their next
generation. What all have written is made visible by the first of the writers, or by the next one if
it was the first that went. Some may have heard that all have written where others have not: then it
is written twice, and the folder keeps the one that is whole first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from torch import nn, optim

from mics_core.comm.partition import PartitionGroup
from mics_core.engine.checkpoint_progress import (
    ABANDONED,
    BROKEN,
    NOTHING_TO_WRITE,
    Writing,
    part_that_failed,
)
from mics_core.engine.checkpoint_state import (
    cause_of,
    part_of,
    share_of,
    sizes_of,
    state_dict_of,
)
from mics_core.engine.part_writing import Background, copy_of, write_part
from mics_core.spec.data_order import DataOrder
from mics_core.spec.folders import (
    LONGEST_ANSWER_S,
    LONGEST_WRITE_S,
    CheckpointFolder,
    Part,
    path_of,
)
from mics_core.spec.job import CheckpointSpec

__all__ = ["CheckpointReport", "Checkpointer"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0
_LONGEST_TIDYING_S = 30.0
_NO_ANSWER = "The storage has not answered in time. Look whether it can be reached, and how fast."


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


class Checkpointer:
    """Writes one worker's part of the checkpoints.

    All workers of the partition group must build it, and call its methods together.

    Args:
        spec: Where, how often and how many.
        partition: The worker's partition group.
        group_id: Its id.
        order: What the order of the run's data depends on, which a checkpoint records.
        report: Told how each checkpoint ended: by the first worker of the first group that wrote
            it, or of the group whose part failed; called from any thread.
    """

    def __init__(
        self,
        spec: CheckpointSpec,
        partition: PartitionGroup,
        group_id: int,
        order: DataOrder,
        report: Callable[[CheckpointReport], None],
    ):
        self._spec = spec
        self._partition = partition
        self._group_id = group_id
        self._order = order
        self._report = report
        self._writing: Writing | None = None
        self._lowest = NOTHING_TO_WRITE
        """What was heard last."""
        self.last_step: int | None = None
        """Steps committed in the checkpoint that was begun last, or that the states come from; none
        if it was given up at its end."""
        self._background: Background | None = None
        self._channel = partition.background
        self._is_stuck = False
        """Whether a thread that was left behind may be in `_channel`."""
        self._left_behind: list[Future[str]] = []
        self._tidied: Future[str] | None = None

    @property
    def is_on(self) -> bool:
        """Whether the job writes checkpoints."""
        return self._spec.directory is not None

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
            fingerprint: Tells these states from others of that step. With the groups it tells
                this attempt from all others.
        """
        assert self._spec.directory is not None
        number = groups.index(self._group_id)
        if self._lowest not in (NOTHING_TO_WRITE, ABANDONED) or self._writing is not None:
            if number == 0:
                self._tell(committed_steps, self._why_left_out())
            return
        self.last_step = committed_steps
        if self._background is None:
            self._background = Background()
        if self._is_stuck:
            self._channel, self._is_stuck = self._partition.form_background(), False
        state = state_dict_of(model, optimizer)
        names = share_of(sizes_of(state["model"]), number, len(groups))
        mine: dict[str, Any] | str
        try:
            mine = copy_of(part_of(state, names, with_groups=number == 0))
        except Exception as error:
            mine = cause_of(error)
        part = Part(number, tuple(names), (), _fingerprint(fingerprint, groups))
        written = self._background.submit(
            partial(
                write_part,
                self._spec.directory,
                committed_steps,
                part,
                mine,
                self._partition,
                self._channel,
            )
        )
        late_at = monotonic() + LONGEST_ANSWER_S
        self._writing = Writing(
            committed_steps, groups, number, part.fingerprint, written, late_at, left=groups
        )

    @property
    def progress(self) -> float:
        """What this worker says in the summary of a step, see `Writing.progress`."""
        return self._progress(is_last=False)

    def _progress(self, *, is_last: bool) -> float:
        may_leave = is_last or all(thread.done() for thread in self._left_behind)
        return NOTHING_TO_WRITE if self._writing is None else self._writing.progress(may_leave)

    def heard(self, lowest: float) -> None:
        """Take in the lowest progress of all workers of a committed step.

        See [Note: when a checkpoint is complete].
        """
        self._lowest = lowest
        writing = self._writing
        if writing is None:
            return
        if lowest == BROKEN:
            self._give_up_unwritten(writing)
        elif not writing.is_over and lowest < 0:
            writing.is_over = writing.has_failed = True
            writing.owes_report = part_that_failed(lowest) == writing.number
        elif not writing.is_over and lowest > 0:
            assert lowest == writing.step, (lowest, writing.step)
            writing.is_over = True
            self._make_visible(writing)
        if writing.owes_report and (writing.written.done() or writing.is_late):
            writing.owes_report = False
            self._tell(writing.step, self._problem_of(writing.written))
        if lowest == ABANDONED:
            self._leave_behind(writing)
        elif lowest == NOTHING_TO_WRITE and writing.has_failed and self._is_first(writing):
            assert self._background is not None
            self._tidied = self._background.submit(partial(self._tidy_up, writing))
        if lowest in (NOTHING_TO_WRITE, ABANDONED):
            self._writing = None

    def members_changed(self, steps: Mapping[int, int]) -> None:
        """Give up a checkpoint whose writers are not all there any more, or have not begun it.

        One of which all parts are there is made visible by another, see [Note: when a checkpoint is
        complete]. A member that is behind, but has begun it, writes on while it catches up.

        Args:
            steps: Steps committed in the states of each member; -1 if it holds none. All members of
                a generation are told the same, so that they agree on who is left.
        """
        writing = self._writing
        if writing is None:
            return
        before = writing.left
        writing.left = tuple(group for group in before if steps.get(group, -1) >= writing.step)
        gone = [group for group in before if group not in writing.left]
        if not gone:
            return
        if not writing.is_over:
            cause = "had not begun it" if gone[0] in steps else "went away while it was written"
            self._give_up(f"Group {gone[0]} {cause}.")
        elif not writing.has_failed and before[0] in gone:
            self._make_visible(writing)

    def finish(self, agree: Callable[[float], float]) -> bool:
        """Bring the checkpoint under way to its end, if there is one.

        Args:
            agree: Returns the lowest of all workers' numbers; all of them call it.

        Returns:
            Whether all groups were there to the end, see [Note: a loss at the end of a checkpoint].
        """
        if not self.is_on:
            return True
        deadline = monotonic() + LONGEST_WRITE_S
        while True:
            if self._writing is not None:
                self._writing.late_at = min(self._writing.late_at, deadline)
                wait(self._writing.under_way, timeout=_LOOK_AGAIN_S)
            self.heard(agree(self._progress(is_last=True)))
            if self._lowest in (NOTHING_TO_WRITE, ABANDONED, BROKEN):
                return self._lowest != BROKEN

    def close(self) -> None:
        """Wait for what this worker writes."""
        if self._writing is not None:
            wait(self._writing.under_way, timeout=LONGEST_WRITE_S)
        if self._tidied is not None:
            wait([self._tidied], timeout=_LONGEST_TIDYING_S)
        if self._background is not None:
            self._background.close()

    def _make_visible(self, writing: Writing) -> None:
        """Have a checkpoint published whose parts are all there: one worker of all does it."""
        if self._is_first(writing):
            assert self._background is not None
            writing.late_at = monotonic() + LONGEST_ANSWER_S
            writing.published = self._background.submit(partial(self._publish, writing))

    def _publish(self, writing: Writing) -> str:
        """Make a whole checkpoint visible, and remove what is no longer of use."""
        assert self._spec.directory is not None
        step = writing.step
        try:
            folder = CheckpointFolder(self._spec.directory)
            folder.commit(step, len(writing.groups), writing.fingerprint, self._order)
        except BaseException as error:  # see `Background`
            self._tell(step, cause_of(error))
            return self._tidy_up(writing)  # all have written, and nobody else makes it visible
        self._tell(step, "")
        try:
            folder.remove_other_attempts(step)
            folder.prune(self._spec.keep)
        except BaseException as error:
            self._tell(step, f"It is complete, but older ones are still there: {cause_of(error)}")
        return ""

    def _give_up_unwritten(self, writing: Writing) -> None:
        """Give up what is not written by all, where a group went away and none is asked which.

        It may be the first of the writers, so the second tells too; the journal takes it once.
        """
        if not writing.is_over:
            writing.is_over = writing.has_failed = True
            self.last_step = None
            if self._group_id in writing.left[:2]:
                self._tell(writing.step, "A group went away at the end of it.")

    def leave_in_doubt(self) -> None:
        """Tell that nobody may have made a checkpoint visible that all have written.

        For a pause where a group went away: no generation follows that would see to it.
        """
        writing = self._writing
        if writing is None or writing.has_failed:
            return
        if self._group_id in writing.left[1:2]:
            self._tell(
                writing.step,
                "A group went away at the end of it, perhaps before it was made visible: it is"
                " complete if mics.json is there.",
            )

    def _is_first(self, writing: Writing) -> bool:
        """Whether this worker is the first of those that write and are left."""
        return writing.left[:1] == (self._group_id,) and self._partition.rank == 0

    def _tidy_up(self, writing: Writing) -> str:
        """Remove what is left of a checkpoint that failed, if storage lets us."""
        assert self._spec.directory is not None
        step = writing.step
        try:
            folder = CheckpointFolder(self._spec.directory)
            is_complete = not folder.discard(step, writing.fingerprint)
        except BaseException as error:  # see `Background`
            path = path_of(self._spec.directory, step)
            logger.warning("parts of %s, which failed, are still there: %s", path, cause_of(error))
            return ""
        if is_complete:  # whoever was lost, or heard an error, had made it visible before
            self._tell(step, "")
        return ""

    def _leave_behind(self, writing: Writing) -> None:
        """Have the next checkpoint written by another thread, over a process group of its own."""
        if writing.published is not None and not writing.published.done():
            self._tell(writing.step, f"{_NO_ANSWER} It was visible by then, or about to be.")
        self._left_behind = writing.under_way
        if self._background is not None:
            self._background.close()
        self._background, self._is_stuck = None, True

    def _give_up(self, problem: str) -> None:
        """Report that the checkpoint under way failed: the first writer that is left does."""
        writing = self._writing
        assert writing is not None
        if writing.is_over:
            return
        writing.is_over = writing.has_failed = True
        if writing.left[:1] == (self._group_id,):
            self._tell(writing.step, problem)

    def _why_left_out(self) -> str:
        if self._lowest == BROKEN:
            return "It was left out, for a group went away just then."
        before = (
            f"that of step {self._writing.step}" if self._writing is not None else "another one"
        )
        return (
            f"It was left out, for {before} is still being written. Write less often, or to faster"
            " storage."
        )

    def _problem_of(self, work: Future[str]) -> str:
        if not work.done():
            return _NO_ANSWER
        return work.result() or "Another worker of the group could not write; its log says why."

    def _tell(self, step: int, problem: str) -> None:
        assert self._spec.directory is not None
        path = path_of(self._spec.directory, step)
        if self._partition.rank == 0:
            if problem:
                logger.warning("checkpoint %s failed: %s", path, problem)
            self._report(CheckpointReport(step, path, problem))


def _fingerprint(of_states: str, groups: Sequence[int]) -> str:
    return f"{of_states} by groups {', '.join(map(str, groups))}"
