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
from mics_core.engine.entering import Entry, enter
from mics_core.engine.holding import Holding
from mics_core.engine.membership import ASKED_WITHIN_S, Membership
from mics_core.engine.pausing import wait_for_copy
from mics_core.engine.preparing import Preparation, Preparations
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import StepBroken, Trainer
from mics_core.errors import ReplicationError

__all__ = ["Ending", "LoopOptions", "train"]

logger = logging.getLogger(__name__)

_INSIDE = 1.5
"""So much longer than for its peers a worker waits for its own partition group. Another worker of
it may wait for a peer that does not answer: it is to be heard first, or the whole group would be
lost with the peer's. But that is less than it takes until a silent group is evicted, for the group
knows better which of its workers is at fault."""
_BETWEEN_GENERATIONS = 2.0
"""So much longer than a step's limit, up to which a group may be missed before it is evicted."""


class Ending(StrEnum):
    """Why a worker's loop came to its end."""

    FINISHED = "finished"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Limits of the loop.

    Args:
        collective_timeout_s: Time limit of connecting, and of each collective of a step of which
            nothing can be foretold; more where steps are long.
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
        if membership.outlives_losses:
            trainer.keep_work()
        self._last_step = trainer.spec.training.steps
        self._patience = Patience(options.silence_s, options.collective_timeout_s)
        self._preparations = Preparations(self._prepare)
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
        self._have_computed: set[int] = set()
        """Groups that have had a share of a step."""

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
        if not plan.begins_run:
            # It was to begin the run, and the others began without it.
            self._holding.has_state = False
        while True:
            position = plan.position_of(self._membership.group_id)
            if position is None:
                self._checkpointer.close()
                return Ending.LEFT
            self._patience.heard(plan.usual_step_s)
            self._wait_long()
            entry = enter(
                self._trainer,
                self._preparations.take(plan, position),
                self._holding,
                superseded=partial(self._is_superseded, plan.number),
                silence_s=self._options.silence_s,
            )
            if isinstance(entry, str):
                self._broken(plan.number, self._holding.step, entry)
                plan = self._next_plan(after=plan.number)
                continue
            self._checkpointer.members_changed(dict(zip(plan.groups, entry.steps, strict=True)))
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
            self._wait_long()
            if switch_to is Ending.FINISHED:
                self._checkpointer.close()
                return Ending.FINISHED
            plan = switch_to or self._next_plan(after=plan.number)

    def close(self) -> None:
        """End the threads."""
        self._preparations.drop()
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
        active, done, has_entered = entry.active, entry.done, holding.has_state
        if has_entered:
            membership.entered(plan.number, holding.step, entry.connect_s)
        self._foretell(plan, active)
        limit_s = 0.0
        while holding.step < self._last_step:
            begin = time.perf_counter()
            if self._patience.limit_s != limit_s:
                limit_s = self._patience.limit_s
                entry.replication.limit_collectives(limit_s)
                trainer.partition.limit_collectives(_INSIDE * limit_s)
            self._look_ahead(plan.number)
            outcome = trainer.run_step(
                holding.step,
                entry.replication,
                membership.pending(),
                active,
                self._checkpointer.progress,
                partial(self._has_lost_member, plan.number),
                done,
            )
            done = ()
            if isinstance(outcome, StepBroken):
                # Close before anything else: peers that wait for this worker fail at once then.
                entry.close()
                self._fall_back(entry)
                logger.warning("step %d was not committed: %s", outcome.step, outcome.error)
                self._broken(outcome.generation, holding.step, outcome.error)
                return None
            took_s = time.perf_counter() - begin
            self._patience.took(took_s, is_whole=not outcome.in_hand)
            self._have_computed |= {
                plan.groups[place] for place in active if outcome.shares[place].num_samples
            }
            if outcome.up_to_date != active:
                active = outcome.up_to_date
                self._foretell(plan, active)
            holding.step += 1
            holding.has_state = entry.position in active
            trainer.committed_steps = holding.step
            if holding.has_state and not has_entered:
                membership.entered(plan.number, holding.step, entry.connect_s)
                has_entered = True
            membership.committed(outcome, took_s)
            self._fingerprint = outcome.fingerprint
            self._checkpointer.heard(outcome.checkpoint)
            if holding.step == self._last_step:
                break
            if self._checkpointer.is_due(holding.step):
                self._begin_checkpoint(plan, active)
            if outcome.pending_generation > plan.number:
                return self._switch(plan, entry, outcome)
            if outcome.waits_for_copy:
                self._wait_long()
                wait_for_copy(trainer, entry.replication, partial(self._is_superseded, plan.number))
                limit_s = 0.0  # which is neither's any more
        # One worker of a group may wait for its peers, and the others of the group for that one.
        self._wait_long()
        if not self._write_checkpoint(plan, entry, active):
            # Close before anything else, as above. Whoever is left writes it under the next
            # generation; if the others had finished, the supervisor says that the run ends there.
            entry.close()
            self._fall_back(entry)
            error = "A group went away at the end of the last checkpoint."
            logger.warning("%s", error)
            self._broken(plan.number, holding.step, error)
            return None
        return Ending.FINISHED

    def _foretell(self, plan: GenerationPlan, active: Sequence[int]) -> None:
        """Say how long the next step may take, by who computes it and how much."""
        longest = -(-self._trainer.num_micro_batches // max(1, len(active)))
        compute = {plan.groups[place] for place in active}
        self._patience.begins(longest, with_newcomer=not compute <= self._have_computed)

    def _switch(self, plan: GenerationPlan, entry: Entry, outcome: StepCommit) -> GenerationPlan:
        """Return the plan to switch to, after the checkpoint that it may ask for."""
        # The supervisor may take its time to answer, and storage too.
        self._wait_long()
        following = self._plan(outcome.pending_generation)
        if following.writes_checkpoint and not self._write_checkpoint(
            plan, entry, outcome.up_to_date
        ):
            self._checkpointer.leave_in_doubt()
        self._fall_back(entry)
        return following

    def _wait_long(self) -> None:
        """Give the partition group's collectives all time that may pass between generations.

        One of its workers may wait for another group of which a single worker is stopped. The
        supervisor evicts that one in time; this limit is for a group that nobody else waits for.
        """
        limit_s = max(_BETWEEN_GENERATIONS * self._patience.ceiling_s, ASKED_WITHIN_S)
        self._trainer.partition.limit_collectives(limit_s)

    def _fall_back(self, entry: Entry) -> None:
        """Take stock where a generation ends: who has not caught up has what it held meanwhile."""
        held, holding = entry.held, self._holding
        if held is not None and held.has_state and not holding.has_state:
            holding.step, holding.has_state = held.step, True
            self._trainer.committed_steps = held.step

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

        def agree(mine: float) -> float:
            # The others may have heard of the next generation before they came here, and wait.
            self._look_ahead(plan.number)
            return _lowest(self._trainer, entry.replication, mine)

        # First, for it is not to be left out for one that is still being written.
        are_there = checkpointer.finish(agree)
        is_missing = holding.has_state and checkpointer.last_step != holding.step
        if are_there:
            # Together, for of those who wrote the first attempt only some may have seen a loss.
            lowest = agree(0.0 if is_missing else 1.0)
            if lowest == 1.0:
                return True
            if lowest < 0:
                checkpointer.heard(lowest)
                are_there = False
        if not are_there:
            if is_missing:
                self._begin_checkpoint(plan, active)  # which tells that it is left out
            return False
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
            self._preparations.begin(plan, position)

    def _prepare(self, plan: GenerationPlan, position: int) -> Preparation:
        """Begin to connect to the members of a generation."""
        partition = self._trainer.partition
        size = len(plan.groups)
        return Preparation(
            plan,
            Member(plan.number, partition.rank, position, size, node=partition.node),
            superseded=partial(self._is_superseded, plan.number),
            timeout_s=self._patience.ceiling_s,
            missing=partial(self._membership.missed, plan.number),
            memory=self._trainer.gradient_memory,
        )

    def _has_lost_member(self, number: int) -> bool:
        """Whether the generation's step cannot be committed; asked before every micro-batch."""
        self._look_ahead(number)
        return self._membership.after_loss() > number

    def _is_superseded(self, number: int) -> bool:
        return self._membership.pending() > number

    def _broken(self, generation: int, step: int, error: str) -> None:
        self._membership.broken(generation, step, error, has_state=self._holding.has_state)

    def _next_plan(self, after: int) -> GenerationPlan:
        return self._shared(partial(self._membership.next_plan, after))

    def _plan(self, number: int) -> GenerationPlan:
        return self._shared(partial(self._membership.plan, number))

    def _shared(self, ask: Callable[[], GenerationPlan | None]) -> GenerationPlan:
        """Return what rank 0 is told; it asks until there is a plan."""
        partition = self._trainer.partition
        while True:
            # Rank 0 says again and again that there is none, lest the others give it up.
            plan = ask() if partition.rank == 0 else None
            shared: GenerationPlan | None = partition.share_from_leader(plan)
            if shared is not None:
                return shared


def _lowest(trainer: Trainer, replication: ReplicationGroup, mine: float) -> float:
    """Return the lowest number of all workers; below all if one cannot be asked any more."""
    try:
        lowest = min(row[0] for row in replication.gather_doubles([mine]))
    except ReplicationError:
        lowest = -math.inf
    return min(lowest for (lowest,) in trainer.partition.gather_doubles([lowest]))
