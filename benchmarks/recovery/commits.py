"""What a fault cost, from the commits that the survivors wrote: the peers' part of `Outcome`.

The definitions are those of `benchmarks.recovery.faults`, which has them from our job's events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.recovery.faults import Outcome
from benchmarks.recovery.steps import StepLine

__all__ = ["NORMAL_STEPS", "Change", "cost_of_change", "cost_of_loss", "normal_s"]

NORMAL_STEPS = 15
"""A normal step is the median of so many."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of membership as one witness saw it.

    Args:
        before: The witness's commits before the fault or the change, by time.
        after: Its first commit with the new members; those of the change on the way to it first.
        num_discarded: Steps that it ran and did not commit on the way.
        is_under_way: Whether a step was under way and was lost without a line that says so.
    """

    before: Sequence[StepLine]
    after: Sequence[StepLine]
    num_discarded: int = 0
    is_under_way: bool = False

    @property
    def steps_redone(self) -> int:
        """Steps that were begun or committed, and run again."""
        committed_again = self.before[-1].step + 1 - self.after[0].step
        return max(0, committed_again) + (self.num_discarded or int(self.is_under_way))


def normal_s(commits: Sequence[StepLine]) -> float:
    """Return the usual time from one commit to the next."""
    times = [commit.time for commit in commits[-NORMAL_STEPS - 1 :]]
    return median(late - early for early, late in pairwise(times))


def cost_of_loss(change: Change, at: float) -> Outcome:
    """Measure a loss that happened at `at`."""
    usual_s = normal_s(change.before)
    first, last = change.after[-1], change.before[-1]
    return Outcome(
        stall_s=first.time - at - usual_s,
        steps_redone=change.steps_redone,
        extra_step_ratio=(first.time - last.time) / usual_s - 1.0,
    )


def cost_of_change(change: Change, usual_s: float, until_s: float | None = None) -> Outcome:
    """Measure a change that nothing was lost in.

    Args:
        change: What the witness saw.
        usual_s: A normal step.
        until_s: See `Outcome.until_contribution_s`.
    """
    times = [commit.time for commit in (change.before[-1], *change.after)]
    extra_s = times[-1] - times[0] - usual_s * (len(times) - 1)
    return Outcome(max(0.0, extra_s), change.steps_redone, extra_s / usual_s, until_s)
