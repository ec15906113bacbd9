"""Puts the committed steps that several groups report into their order."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["StepOrder"]

_Report = TypeVar("_Report")


class StepOrder(Generic[_Report]):
    """Holds a report back until the step before it has been reported.

    Every group reports every step that it commits, each at its own pace. So a group that has just
    joined may report its first step before the report of the step before it arrives, which only the
    others have committed.

    Args:
        patience_s: How long a missing step is waited for; its report may be lost with its group.
    """

    def __init__(self, patience_s: float):
        self._patience_s = patience_s
        self._next = 0
        self._generation = 0
        self._early: dict[int, _Report] = {}
        self._waiting_since = 0.0

    def begin(self, step: int, generation: int) -> None:
        """Go on at `step`, which `generation` trains first; what others said of it is void."""
        self._next, self._generation = step, generation
        self._early.clear()

    def take(self, step: int, generation: int, report: _Report, now: float) -> list[_Report]:
        """Take in a report; return those that are due, in order.

        Repeated reports of a step are given on as they come.
        """
        if step > self._next:
            if generation >= self._generation:
                self._waiting_since = self._waiting_since if self._early else now
                self._early[step] = report
            return []
        if step == self._next:
            if generation < self._generation:
                return []
            self._next += 1
        return [report, *self._following()]

    def overdue(self, now: float) -> list[_Report]:
        """Return what waited for its patience for a step that did not come."""
        if not self._early or now - self._waiting_since < self._patience_s:
            return []
        return self.rest()

    def rest(self) -> list[_Report]:
        """Return everything that waits, in order."""
        if not self._early:
            return []
        steps = sorted(self._early)
        self._next = steps[-1] + 1
        return [self._early.pop(step) for step in steps]

    def _following(self) -> list[_Report]:
        found = []
        while self._next in self._early:
            found.append(self._early.pop(self._next))
            self._next += 1
        return found
