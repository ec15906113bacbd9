"""The training loop of one worker, from its first generation to the last step.

[Note: agreement inside a partition group]
The workers of a partition group must always do the same thing. What they decide on is therefore
either the result of an exchange (the summary of a step, the vote), or fetched by rank 0 and shared
(the next plan). Between groups there is no such bond: a group that is left behind in an old
generation finds its connections closed, votes that the generation is broken, and asks for the next.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal

from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.elastic.patience import Patience
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.checkpoint import Checkpointer
from mics_core.engine.entering import Entry, Holding, enter
from mics_core.engine.membership import Membership
from mics_core.engine.preparing import Preparation
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import StepBroken, Trainer
from mics_core.errors import ReplicationError

__all__ = ["Ending", "LoopOptions", "train"]

logger = logging.getLogger(__name__)


class Ending(StrEnum):
    """Why a worker's loop came to its end."""

    FINISHED = "finished"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Limits of the loop.

    Args:
        collective_timeout_s: Time limit of connecting, and of each collective of a step of which
            nothing can be foretold.
        silence_s: Least time limit of the collectives of all other steps (`Patience`).
    """

    collective_timeout_s: float = 120.0
    silence_s: float = 15.0


def train(
    build: Callable[[bool], Trainer],
    membership: Membership,
    *,
    begins_run: bool,
    options: LoopOptions | None = None,
) -> Ending:
    """Train until the last step, or until this worker's partition group is asked to leave.

    All workers of the partition group must call it.

    Args:
        build: Builds the trainer; the argument says whether its weights are to be initialised.
        membership: The supervisor's edge.
        begins_run: Whether this group may start the run. A group that joins a running one builds
            its model without initial weights and copies everything from its peers.
        options: Limits.
    """
    loop = _Loop(build(begins_run), membership, begins_run, options or LoopOptions())
    try:
        return loop.run()
    finally:
        loop.close()


class _Loop:
    """The loop's state: the trainer, the generation, the next step, and what is held of the states.

    Args:
        trainer: The trainer.
        membership: The supervisor's edge.
        has_state: Whether the trainer's states are the run's.
        options: Limits.
    """

    def __init__(
        self, trainer: Trainer, membership: Membership, has_state: bool, options: LoopOptions
    ):
        self._trainer = trainer
        self._membership = membership
        self._options = options
        self._holding = Holding(trainer.committed_steps, has_state)
        self._last_step = trainer.spec.training.steps
        self._patience = Patience(options.silence_s, options.collective_timeout_s)
        self._preparation: Preparation | None = None
        self._checkpointer = Checkpointer(
            trainer.spec.checkpoint,
            trainer.partition,
            membership.group_id,
            trainer.data_order,
            membership.checkpointed,
        )
        self._checkpointer.last_step = trainer.committed_steps
        self._fingerprint = ""
        """Of the step that was committed last."""

    def run(self) -> Ending:
        """Go through generations until the end.

        Raises:
            GroupFailedError: A collective of the partition group broke, in a step or between two.
        """
        # Outside of everything that closes the generation's connections: this group is lost then,
        # and its peers, who would wait for this worker, are to know it before it asks who is
        # missing.
        partition = self._trainer.partition
        with partition.explained(self._membership.group_id, lambda: self._holding.step):
            return self._run()

    def _run(self) -> Ending:
        plan = self._next_plan(after=0)
        while True:
            self._checkpointer.members_changed(plan.groups)
            position = plan.position_of(self._membership.group_id)
            if position is None:
                self._checkpointer.close()
                return Ending.LEFT
            preparation = self._prepare(plan, position)
            self._preparation = None  # it is taken
            entry = enter(
                self._trainer,
                preparation,
                self._holding,
                superseded=partial(self._is_superseded, plan.number),
            )
            if isinstance(entry, str):
                self._broken(plan.number, self._holding.step, entry)
                plan = self._next_plan(after=plan.number)
                continue
            if position == 0 and self._trainer.partition.rank == 0:
                # Every group that begins the run has seen them, and one event is enough.
                for damaged in self._trainer.passed_over:
                    self._membership.checkpointed(damaged)
            self._trainer.passed_over = ()
            try:
                switch_to = self._run_steps(plan, entry)
            finally:
                entry.close()
                self._trainer.begin_catching_up(None)
            # Between generations workers may wait for long: the supervisor decides for how long.
            self._trainer.partition.limit_collectives(self._options.collective_timeout_s)
            if switch_to is Ending.FINISHED:
                self._checkpointer.close()
                return Ending.FINISHED
            plan = switch_to or self._next_plan(after=plan.number)

    def close(self) -> None:
        """End the threads."""
        if self._preparation is not None:
            self._preparation.drop()
        self._trainer.close()

    def _run_steps(
        self, plan: GenerationPlan, entry: Entry
    ) -> GenerationPlan | Literal[Ending.FINISHED] | None:
        """Run steps under one generation.

        Returns:
            The generation to switch to, none if it broke and the next is not known, or that the
            last step is done.
        """
        trainer, membership, holding = self._trainer, self._membership, self._holding
        active, has_entered = entry.active, holding.has_state
        if has_entered:
            membership.entered(plan.number, holding.step, entry.connect_s)
        self._patience.began_anew()
        limit_s = 0.0
        while holding.step < self._last_step:
            begin = time.perf_counter()
            if self._patience.limit_s != limit_s:
                limit_s = self._patience.limit_s
                for group in (entry.replication, trainer.partition):
                    group.limit_collectives(limit_s)
            self._look_ahead(plan.number)
            outcome = trainer.run_step(
                holding.step,
                entry.replication,
                membership.pending(),
                active,
                self._checkpointer.progress,
                partial(self._has_lost_member, plan.number),
            )
            if isinstance(outcome, StepBroken):
                # Close before anything else: peers that wait for this worker fail at once then.
                entry.close()
                logger.warning("step %d was not committed: %s", outcome.step, outcome.error)
                self._broken(outcome.generation, outcome.step, outcome.error)
                return None
            took_s = time.perf_counter() - begin
            self._patience.took(took_s)
            if outcome.up_to_date != active:
                # A newcomer's first share of micro-batches: it may have to compile its blocks.
                active = outcome.up_to_date
                self._patience.began_anew()
            holding.step += 1
            holding.has_state = entry.position in active
            trainer.committed_steps = holding.step
            if holding.has_state and not has_entered:
                membership.entered(plan.number, holding.step, entry.connect_s)
                has_entered = True
            membership.committed(outcome, took_s)
            self._fingerprint = outcome.fingerprint
            self._checkpointer.heard(outcome.checkpoint)
            if holding.step < self._last_step and self._checkpointer.is_due(holding.step):
                self._begin_checkpoint(plan, active)
            if holding.step < self._last_step and outcome.pending_generation > plan.number:
                return self._switch(plan, entry, outcome)
        if not self._write_checkpoint(plan, entry, active):
            # Close before anything else, as above. Whoever is left writes it under the next
            # generation; if the others had finished, the supervisor says that the run ends there.
            entry.close()
            error = "A group went away at the end of the last checkpoint."
            logger.warning("%s", error)
            self._broken(plan.number, holding.step, error)
            return None
        return Ending.FINISHED

    def _switch(self, plan: GenerationPlan, entry: Entry, outcome: StepCommit) -> GenerationPlan:
        """Return the plan to switch to, after the checkpoint that it may ask for."""
        # The supervisor may take its time to answer, and storage too.
        self._trainer.partition.limit_collectives(self._options.collective_timeout_s)
        following = self._plan(outcome.pending_generation)
        if following.writes_checkpoint and not self._write_checkpoint(
            plan, entry, outcome.up_to_date
        ):
            self._checkpointer.leave_in_doubt()
        return following

    def _write_checkpoint(self, plan: GenerationPlan, entry: Entry, active: Sequence[int]) -> bool:
        """Write a checkpoint of this very step, and wait until all have; all workers call it.

        Args:
            plan: The generation.
            entry: It, entered.
            active: Places of the groups that hold the states.

        Returns:
            Whether all groups were there to the end; the same on all workers of the group.
        """
        checkpointer, holding = self._checkpointer, self._holding
        if not checkpointer.is_on:
            return True
        agree = partial(_lowest, self._trainer, entry.replication)
        # First, for it is not to be left out for one that is still being written.
        are_there = checkpointer.finish(agree)
        is_missing = holding.has_state and checkpointer.last_step != holding.step
        if not are_there:
            if is_missing:
                self._begin_checkpoint(plan, active)  # which tells that it is left out
            return False
        # Together, for of those who wrote the first attempt only some may have seen a loss.
        if agree(0.0 if is_missing else 1.0) == 1.0:
            return True
        self._begin_checkpoint(plan, active)
        return checkpointer.finish(agree)

    def _begin_checkpoint(self, plan: GenerationPlan, active: Sequence[int]) -> None:
        writers = tuple(plan.groups[place] for place in active)
        if self._checkpointer.is_on and self._membership.group_id in writers:
            trainer = self._trainer
            # No other run has that store, should its workers still be about.
            states = f"{self._fingerprint} in generation {plan.number} at {plan.store}"
            self._checkpointer.begin(
                self._holding.step, trainer.model, trainer.optimizer, writers, states
            )

    def _look_ahead(self, number: int) -> None:
        """Begin to connect to a generation after `number`, if one has been heard of."""
        plan = self._membership.announced()
        if plan is None or plan.number <= number:
            return
        position = plan.position_of(self._membership.group_id)
        if position is not None:
            self._prepare(plan, position)

    def _prepare(self, plan: GenerationPlan, position: int) -> Preparation:
        """Return connections to the members of a generation: those begun before, or new ones."""
        if self._preparation is not None and self._preparation.number == plan.number:
            return self._preparation
        if self._preparation is not None:
            self._preparation.drop()
        partition = self._trainer.partition
        size = len(plan.groups)
        self._preparation = Preparation(
            plan,
            Member(plan.number, partition.rank, position, size, node=partition.node),
            superseded=partial(self._is_superseded, plan.number),
            timeout_s=self._options.collective_timeout_s,
        )
        return self._preparation

    def _has_lost_member(self, number: int) -> bool:
        """Whether the generation's step cannot be committed; asked before every micro-batch."""
        self._look_ahead(number)
        return self._membership.after_loss() > number

    def _is_superseded(self, number: int) -> bool:
        return self._membership.pending() > number

    def _broken(self, generation: int, step: int, error: str) -> None:
        self._membership.broken(generation, step, error, has_state=self._holding.has_state)

    def _next_plan(self, after: int) -> GenerationPlan:
        partition = self._trainer.partition
        while True:
            # Rank 0 says again and again that there is none, lest the others give it up.
            plan = self._membership.next_plan(after) if partition.rank == 0 else None
            shared: GenerationPlan | None = partition.share_from_leader(plan)
            if shared is not None:
                return shared

    def _plan(self, number: int) -> GenerationPlan:
        partition = self._trainer.partition
        plan = self._membership.plan(number) if partition.rank == 0 else None
        shared: GenerationPlan = partition.share_from_leader(plan)
        return shared


def _lowest(trainer: Trainer, replication: ReplicationGroup, mine: float) -> float:
    """Return the lowest number of all workers; below all if one cannot be asked any more."""
    try:
        lowest = min(row[0] for row in replication.gather_doubles([mine]))
    except ReplicationError:
        lowest = -math.inf
    return min(lowest for (lowest,) in trainer.partition.gather_doubles([lowest]))
