"""What a fault cost, from the commits that the survivors wrote: the peers' part of `Outcome`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.recovery.outcome import Outcome, extra_of, usual_step_s
from benchmarks.recovery.steps import StepLine

__all__ = ["Change", "cost_of_change", "cost_of_loss", "normal_s"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of membership as one witness saw it.

    Args:
        before: The witness's commits before the fault or the change, by time.
        after: Those from then on, up to its first commit with the new members.
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
        steps = [commit.step for commit in (self.before[-1], *self.after)]
        committed_again = sum(max(0, last + 1 - step) for last, step in pairwise(steps))
        return committed_again + (self.num_discarded or int(self.is_under_way))


def normal_s(commits: Sequence[StepLine]) -> float:
    """Return the usual time from one commit to the next."""
    return usual_step_s([commit.time for commit in commits])


def cost_of_loss(change: Change, at: float) -> Outcome:
    """Measure a loss that happened at `at`."""
    usual_s = normal_s(change.before)
    first, last = change.after[-1], change.before[-1]
    return Outcome(
        stall_s=first.time - at - usual_s,
        steps_redone=change.steps_redone,
        extra_step_ratio=(first.time - last.time) / usual_s - 1.0,
    )


def cost_of_change(
    change: Change, before_s: float, after_s: float, until_s: float | None = None
) -> Outcome:
    """Measure a change that nothing was lost in.

    Args:
        change: What the witness saw.
        before_s: The usual step before the change was asked for.
        after_s: The usual step with the new members.
        until_s: See `Outcome.until_contribution_s`.
    """
    times = [commit.time for commit in (change.before[-1], *change.after)]
    extra = extra_of(times, before_s, after_s)
    return Outcome(
        stall_s=max(0.0, extra.extra_s),
        steps_redone=change.steps_redone,
        extra_step_ratio=extra.ratio,
        until_contribution_s=until_s,
        with_capacity_ratio=extra.with_capacity_ratio,
    )
