"""What the training loop needs to know about the others: the edge between engine and cluster.

The cluster implements it with the supervisor; `StaticMembership` serves runs whose workers all
start together, such as `torchrun`'s.
"""

from __future__ import annotations

from typing import Protocol

from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.checkpoint import CheckpointReport
from mics_core.engine.summary import StepCommit

__all__ = ["ASKED_WITHIN_S", "Membership", "StaticMembership"]

ASKED_WITHIN_S = 120.0
"""The longest that `next_plan` and `plan` take: a worker waits so long for its group's leader."""


class Membership(Protocol):
    """The supervisor as a worker sees it.

    Only `pending`, `announced`, `after_loss` and the reports are used while steps run, and none of
    them waits for a message. `next_plan` and `plan` may wait; they are called between generations.
    """

    @property
    def group_id(self) -> int:
        """Id of this worker's partition group."""

    @property
    def outlives_losses(self) -> bool:
        """Whether the run goes on when a group is lost."""

    def pending(self) -> int:
        """Return the highest generation number heard of; 0 before the first."""

    def announced(self) -> GenerationPlan | None:
        """Return the newest plan that is here already; none before the first."""

    def after_loss(self) -> int:
        """Return the highest generation heard of that was announced because a member is gone.

        No step of an earlier one can be committed by anybody who has not sent its part yet.
        """

    def next_plan(self, after: int) -> GenerationPlan | None:
        """Wait a while for a generation above `after`; return the newest plan, or none yet."""

    def plan(self, number: int) -> GenerationPlan | None:
        """Return the plan of an announced generation, or none if nobody says it yet."""

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        """Report that this worker trains under `generation` from `step` on."""

    def committed(self, commit: StepCommit, took_s: float) -> None:
        """Report a committed step, which took so many seconds from its begin on.

        All workers of a partition group have voted for it, so one report of a group is enough.
        """

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        """Report that this worker's replication group broke, and whether it holds a whole state."""

    def missed(self, generation: int, groups: tuple[int, ...]) -> None:
        """Report groups that have not come to a generation yet; called from another thread."""

    def checkpointed(self, report: CheckpointReport) -> None:
        """Report how a checkpoint ended; called from another thread."""


class StaticMembership:
    """One generation that never changes."""

    def __init__(self, plan: GenerationPlan, group_id: int):
        self._plan = plan
        self._group_id = group_id
        self.commits: list[StepCommit] = []
        self.checkpoints: list[CheckpointReport] = []

    @property
    def group_id(self) -> int:
        """Id of this worker's partition group."""
        return self._group_id

    @property
    def outlives_losses(self) -> bool:
        """Return False: nobody announces another generation."""
        return False

    def pending(self) -> int:
        """Return the number of the only generation."""
        return self._plan.number

    def announced(self) -> GenerationPlan:
        """Return the only plan."""
        return self._plan

    def after_loss(self) -> int:
        """Return 0: nobody tells of losses."""
        return 0

    def next_plan(self, after: int) -> GenerationPlan | None:
        """Return the only plan.

        Raises:
            RuntimeError: A member was lost; without a supervisor nothing can replace it.
        """
        if after >= self._plan.number:
            raise RuntimeError(
                "A worker was lost, and this run has a fixed membership."
                " Start the job on a Ray cluster to train on without it."
            )
        return self._plan

    def plan(self, number: int) -> GenerationPlan | None:
        """Return the only plan."""
        assert number == self._plan.number
        return self._plan

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        """Do nothing: nobody watches."""

    def committed(self, commit: StepCommit, took_s: float) -> None:
        """Keep the commit."""
        self.commits.append(commit)

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        """Do nothing: `next_plan` says what follows."""

    def missed(self, generation: int, groups: tuple[int, ...]) -> None:
        """Do nothing: nobody could evict them."""

    def checkpointed(self, report: CheckpointReport) -> None:
        """Keep the report."""
        self.checkpoints.append(report)
