"""The training loop of one worker, from its first generation to the last step.

[Note: agreement inside a partition group]
The workers of a partition group must always do the same thing. What they decide on is therefore
either the result of an exchange (the summary of a step, the vote), or fetched by rank 0 and shared
(the next plan). Between groups there is no such bond: a group that is left behind in an old
generation finds its connections closed, votes that the generation is broken, and asks for the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from mics_core.comm.replication import Member, ReplicationGroup, connect
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.checkpoint import Checkpointer
from mics_core.engine.membership import Membership
from mics_core.engine.state import state_tensors
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
        collective_timeout_s: Time limit of connecting and of each collective across groups.
    """

    collective_timeout_s: float = 120.0


@dataclass(slots=True)
class _Progress:
    """How far this worker is: the next step, and whether it holds a state worth copying."""

    step: int
    has_state: bool


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
    options = options or LoopOptions()
    trainer = build(begins_run)
    progress = _Progress(trainer.committed_steps, has_state=begins_run)
    checkpointer = Checkpointer(trainer.spec.checkpoint, trainer.partition, membership.checkpointed)
    plan = _next_plan(trainer, membership, after=0)
    replication: ReplicationGroup | None = None
    try:
        while True:
            position = plan.position_of(membership.group_id)
            if position is None:
                checkpointer.wait()
                return Ending.LEFT
            replication, error = _enter(trainer, membership, plan, position, progress, options)
            if replication is None:
                membership.broken(plan.number, progress.step, error, has_state=progress.has_state)
                plan = _next_plan(trainer, membership, after=plan.number)
                continue
            membership.entered(plan.number, progress.step)
            switch_to = _run_steps(trainer, membership, checkpointer, plan, replication, progress)
            replication.close()
            if switch_to is None:
                checkpointer.wait()
                return Ending.FINISHED
            plan = (
                _next_plan(trainer, membership, after=plan.number)
                if switch_to == 0
                else _plan(trainer, membership, switch_to)
            )
    finally:
        if replication is not None:
            replication.close()
        trainer.close()


def _run_steps(
    trainer: Trainer,
    membership: Membership,
    checkpointer: Checkpointer,
    plan: GenerationPlan,
    replication: ReplicationGroup,
    progress: _Progress,
) -> int | None:
    """Run steps under one generation.

    Returns:
        The generation to switch to, 0 if it broke and the next is not known, none at the end.
    """
    while progress.step < trainer.spec.training.steps:
        with trainer.partition.explained(membership.group_id, progress.step):
            outcome = trainer.run_step(progress.step, replication, membership.pending())
        if isinstance(outcome, StepBroken):
            # Close before anything else: peers that wait for this worker fail at once then.
            replication.close()
            logger.warning("step %d was not committed: %s", outcome.step, outcome.error)
            membership.broken(outcome.generation, outcome.step, outcome.error, has_state=True)
            return 0
        progress.step += 1
        trainer.committed_steps = progress.step
        membership.committed(outcome)
        # One group writes for all: every group holds the same model states.
        if replication.rank == 0 and checkpointer.is_due(
            progress.step, trainer.spec.training.steps
        ):
            checkpointer.save(progress.step, trainer.model, trainer.optimizer)
        if progress.step < trainer.spec.training.steps and (
            outcome.pending_generation > plan.number
        ):
            return outcome.pending_generation
    return None


def _enter(
    trainer: Trainer,
    membership: Membership,
    plan: GenerationPlan,
    position: int,
    progress: _Progress,
    options: LoopOptions,
) -> tuple[ReplicationGroup | None, str]:
    """Connect to the peers of `plan` and bring everyone to the newest committed step.

    Returns:
        The replication group, or none and the error. The same on all workers of the group.
    """
    assert plan.store is not None
    partition = trainer.partition
    member = Member(plan.number, partition.rank, position, len(plan.groups), node=partition.node)
    replication: ReplicationGroup | None = None
    error = ""
    try:
        replication = connect(
            plan.store,
            member,
            superseded=lambda: membership.pending() > plan.number,
            timeout_s=options.collective_timeout_s,
        )
        _catch_up(trainer, replication, progress)
    except ReplicationError as broken:
        error = str(broken)
        if replication is not None:
            replication.close()
    # See [Note: agreement inside a partition group].
    votes = trainer.partition.gather_doubles(
        [float(bool(error)), float(progress.step), float(progress.has_state)]
    )
    at_one_step = len({(step, has_state) for _, step, has_state in votes}) == 1
    if not any(failed for failed, _, _ in votes):
        assert at_one_step, votes
        return replication, ""
    if replication is not None:
        replication.close()
    if not at_one_step:
        # Some workers of this group were brought up to date and others not: its shards no longer
        # belong to one step, so the whole group copies again.
        progress.has_state = False
    return None, error or "Another worker of this partition group could not enter the generation."


def _catch_up(trainer: Trainer, replication: ReplicationGroup, progress: _Progress) -> None:
    """Copy the state of the newest committed step to every member that does not hold it."""
    mine = float(progress.step) if progress.has_state else -1.0
    steps = [row[0] for row in replication.gather_doubles([mine])]
    newest = max(steps)
    if newest < 0:
        raise ReplicationError(
            f"No member of generation {replication.member.generation} holds the model states."
        )
    if min(steps) == newest:
        return
    # Until the copy is complete this worker's state is neither the old nor the new one.
    behind = mine < newest
    if behind:
        progress.has_state = False
    replication.broadcast(
        state_tensors(trainer.model, trainer.optimizer), source=steps.index(newest)
    )
    if behind:
        progress.step, progress.has_state = int(newest), True
        trainer.committed_steps = progress.step


def _next_plan(trainer: Trainer, membership: Membership, after: int) -> GenerationPlan:
    leads = trainer.partition.rank == 0
    plan = membership.next_plan(after) if leads else None
    shared: GenerationPlan = trainer.partition.share_from_leader(plan)
    return shared


def _plan(trainer: Trainer, membership: Membership, number: int) -> GenerationPlan:
    plan = membership.plan(number) if trainer.partition.rank == 0 else None
    shared: GenerationPlan = trainer.partition.share_from_leader(plan)
    return shared
