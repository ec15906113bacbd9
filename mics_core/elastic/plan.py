"""A generation: one membership of the replication groups, announced by the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mics_core.elastic.events import AnnounceGeneration


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the rendezvous store of a generation listens; a member worker hosts it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """What the workers need to enter a generation.

    A plan never changes once it is announced: another membership is another number.

    Args:
        number: 1, 2, 3, …
        groups: Ids of the member groups. A group's place in this tuple is its rank in every
            replication group and decides which micro-batches it runs. Empty means that the run
            ends here.
        store: Rendezvous store of this generation; none if `groups` is empty.
        reason: Why it was formed, in one sentence.
        writes_checkpoint: Whether the members of the generation before write a checkpoint at the
            boundary where they leave it.
        newcomers: Member groups that were no members of the generation before; none in the first
            generation, whose groups begin the run. They will copy the model states, so connections
            for that are made with the others.
        usual_step_s: How long a step took before; 0 if there was none. Newcomers know no other.
        begins_run: Whether the run begins with it, or begins again. In all others what a group
            began with before its first generation counts for nothing.
    """

    number: int
    groups: tuple[int, ...]
    store: StoreAddress | None
    reason: str
    writes_checkpoint: bool = False
    newcomers: tuple[int, ...] = ()
    usual_step_s: float = 0.0
    begins_run: bool = True

    def position_of(self, group_id: int) -> int | None:
        """Return the rank of `group_id` in the replication groups, or none if it is no member."""
        return self.groups.index(group_id) if group_id in self.groups else None


def plan_of(
    decision: AnnounceGeneration,
    store: StoreAddress | None,
    before: GenerationPlan | None,
    usual_step_s: float,
) -> GenerationPlan:
    """Return the plan that tells of a decision.

    Args:
        decision: The new membership.
        store: Where its members meet; none if there are none.
        before: The plan of the generation before; none for the first.
        usual_step_s: How long a step takes at present.
    """
    return GenerationPlan(
        decision.number,
        decision.groups,
        store,
        decision.reason,
        decision.writes_checkpoint,
        newcomers=_newcomers(decision.groups, before),
        usual_step_s=usual_step_s,
        begins_run=decision.begins_run,
    )


def _newcomers(groups: tuple[int, ...], before: GenerationPlan | None) -> tuple[int, ...]:
    if before is None or not before.groups:
        return ()
    return tuple(group for group in groups if group not in before.groups)


def has_lost_member(
    plans: Mapping[int, GenerationPlan], entered: int, is_alive: Callable[[int], bool]
) -> bool:
    """Whether a member of the generation that trains is gone, so that its step will not commit.

    Generations that were announced after it say nothing of that step: who was to join in one of
    them, and is gone, has no part in it.

    Args:
        plans: The generations by number.
        entered: The newest one that anybody has entered; 0 before the first.
        is_alive: Whether a group is.
    """
    plan = plans.get(entered)
    return plan is not None and not all(map(is_alive, plan.groups))
