"""What a fault or a change of membership costs: the definitions that hold for all systems.

[Note: what a change adds]
All is taken from the times of commits. From the request on, or for a newcomer from its
announcement on, every step counts until the first one of the new membership, and what they took
longer than usual is added up, connecting included. The steps until then are held against the usual
step before the request, for a newcomer that starts may share the members' processors. The first one
with other shares of the batch is held against the usual step after it: fewer groups have more to do
and more have less, which is capacity and no cost of the change. The sum is told in steps as they
were before. `with_capacity_ratio` holds that first step against the step before too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

__all__ = ["NORMAL_STEPS", "Extra", "Outcome", "extra_of", "usual_step_s"]

NORMAL_STEPS = 10
"""A usual step is the median of so many."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault.

    Args:
        stall_s: From the fault to the survivors' next committed step, less a usual step; of a
            change without a loss, what it added to the members' steps.
        steps_redone: Steps that survivors began or committed, and took up again.
        extra_step_ratio: Of a loss, what it added to the step that it hit; of a change, see
            [Note: what a change adds]. In usual steps.
        until_contribution_s: From a node to its first part in a step; none where none came.
        phases: Seconds of each phase, as the system itself tells them; none where it does not.
        with_capacity_ratio: See [Note: what a change adds]; none of a loss.
    """

    stall_s: float
    steps_redone: int
    extra_step_ratio: float
    until_contribution_s: float | None = None
    phases: dict[str, float | None] | None = None
    with_capacity_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Extra:
    """What a change added, see [Note: what a change adds].

    Args:
        extra_s: In seconds.
        ratio: In usual steps before it.
        with_capacity_ratio: The same with the loss or the gain of capacity in its first step.
    """

    extra_s: float
    ratio: float
    with_capacity_ratio: float


def usual_step_s(times: Sequence[float]) -> float:
    """Return the usual time from one commit to the next, of the last ones among `times`."""
    return median(late - early for early, late in pairwise(times[-NORMAL_STEPS - 1 :]))


def extra_of(times: Sequence[float], before_s: float, after_s: float) -> Extra:
    """Return what a change added to the members' steps.

    Args:
        times: Of the last commit before it, of those on the way, and of the first one of the new
            membership.
        before_s: The usual step before.
        after_s: The usual step after.
    """
    took_s, num_steps = times[-1] - times[0], len(times) - 1
    extra_s = took_s - (num_steps - 1) * before_s - after_s
    return Extra(extra_s, extra_s / before_s, took_s / before_s - num_steps)
