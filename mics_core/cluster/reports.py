"""What workers report becomes what the membership machine and the journal are told."""

from __future__ import annotations

from collections.abc import Callable

from mics_core.cluster.groups import GroupRun, GroupRuns
from mics_core.cluster.memory import Memory
from mics_core.cluster.messages import (
    Checkpointed,
    Committed,
    Ended,
    Entered,
    Failed,
    Message,
    Missed,
    Ready,
    ReplicationBroke,
    Started,
)
from mics_core.elastic import events as elastic
from mics_core.engine.summary import StepCommit

__all__ = ["Reports"]


class Reports:
    """Takes in the reports of one job's workers.

    Args:
        memory: The supervisor's.
        runs: The groups.
        tell: Feeds the membership machine.
    """

    def __init__(self, memory: Memory, runs: GroupRuns, tell: Callable[[elastic.Event], None]):
        self._memory = memory
        self._runs = runs
        self._tell = tell

    def take_in(self, group_id: int, message: Message) -> None:
        """Take in what a worker of a group says; what comes twice does no harm."""
        run = self._runs.get(group_id)
        if run is not None and isinstance(message, Started):
            self._runs.add_actor(run, message)  # also of an evicted one, which has yet to be ended
        if run is None or not self._runs.is_alive(group_id):
            return  # from a group that was evicted: it has no say any more
        # A newcomer that waits for the members has nothing to tell of them.
        if run.trained or not isinstance(message, Missed):
            self._memory.heard_at = self._memory.clock()
        match message:
            case Started():
                if self._runs.has_started(run):
                    self._tell(elastic.GroupStarted(group_id))
            case Ready():
                if self._runs.add_worker(run, message):
                    self._tell(elastic.GroupReady(group_id))
            case Entered(rank, generation, step, connect_s):
                if rank == 0:
                    run.entered, run.entered_at = generation, step
                    self._memory.course.enter(group_id, generation, step, connect_s)
                    self._tell(elastic.GroupEntered(group_id, generation, step))
            case Committed(commit):
                run.step = commit.step + 1
                self._note_trained(run, commit)
                self._note_pace(run, message)
                self._memory.course.commit(message)
            case ReplicationBroke(rank, generation, step, error, has_state):
                if rank == 0:
                    self._tell(elastic.GroupBroken(group_id, generation, step, error, has_state))
            case Missed(_, generation, groups):
                self._tell(elastic.GroupsMissed(group_id, generation, groups))
            case Failed(rank, step, error, own_error):
                reason = f"Rank {rank} failed at step {step}: {error}"
                if not own_error:
                    reason = f"Rank {rank} lost a worker of its group at step {step}: {error}"
                run.first_error = run.first_error or reason
                self._tell(elastic.GroupLost(group_id, reason, own_error, step))
            case Checkpointed(_, step, path, error):
                self._memory.journal.checkpoint(step, path, error)
            case Ended(rank, finished):
                if rank == 0:
                    run.finished = finished

    def _place_of(self, run: GroupRun, commit: StepCommit) -> int | None:
        """Return a group's place in the generation of a step, if that is still known."""
        plan = self._memory.plans.get(commit.generation)
        return None if plan is None else plan.position_of(run.group_id)

    def _note_trained(self, run: GroupRun, commit: StepCommit) -> None:
        """Tell of a group's first step under a generation; those that it listened to are none."""
        is_own = commit.generation == run.entered and commit.step >= run.entered_at
        if not is_own or run.trained >= run.entered:
            return
        place = self._place_of(run, commit)
        if place is not None and not commit.shares[place].num_samples:
            return  # a step that went on after a loss left nothing for it
        run.trained = run.entered
        self._tell(elastic.GroupTrained(run.group_id, run.trained))

    def _note_pace(self, run: GroupRun, message: Committed) -> None:
        place = self._place_of(run, message.commit)
        if place is not None:
            run.pace.take_in(message, place)

    def note_death(self, group_id: int, rank: int) -> None:
        """Take in that a worker's connection closed."""
        run = self._runs.get(group_id)
        if run is None or not self._runs.is_alive(group_id):
            return
        where = f" on node {run.nodes[rank][:8]}" if rank < len(run.nodes) else ""
        reason = f"The process of rank {rank}{where} is gone: its connection closed."
        self._tell(elastic.GroupLost(group_id, reason))
