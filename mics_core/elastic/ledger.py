"""The ledger of samples: how often each place of each global batch went into a committed step.

A run has any number of steps, so the ledger keeps one entry for a run of consecutive steps that one
generation committed with the same outcome, and counts shares as intervals: time and memory depend
on the number of groups and of membership changes, not on the batch size or the number of steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

__all__ = ["SampleLedger", "SampleUse"]


@dataclass(frozen=True, slots=True)
class SampleUse:
    """Uses of the samples of some steps.

    Args:
        due: Samples that the steps should have used.
        used: Different samples that were used.
        repeated: Uses beyond the first.
    """

    due: int
    used: int
    repeated: int

    def plus(self, other: SampleUse, times: int) -> SampleUse:
        """Return the sum of these uses and `times` the others."""
        return SampleUse(
            self.due + times * other.due,
            self.used + times * other.used,
            self.repeated + times * other.repeated,
        )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Steps [first, stop) that one generation committed, each with the same use."""

    first: int
    stop: int
    generation: int
    use: SampleUse


@dataclass(slots=True)
class SampleLedger:
    """Counts the samples of committed steps from what the groups say that they used.

    A step that is committed again, because the generation that had committed it was lost as a
    whole, replaces its earlier entry: the model states of that generation are gone with it.
    """

    global_batch_size: int
    _stretches: list[_Stretch] = field(default_factory=list)
    _void_step: int = 0
    _void_generation: int = 0
    _total: SampleUse = SampleUse(0, 0, 0)

    def commit(self, step: int, generation: int, shares: Iterable[tuple[int, int]]) -> bool:
        """Enter a committed step.

        Args:
            step: Number of the step.
            generation: Generation that committed it.
            shares: What the groups used, as runs of places in the global batch: the first one and
                their number.

        Returns:
            Whether the entry is new; false for a step of this or an older generation that is
            already in the ledger, as every group reports the same commit, and for a late report
            of a step that was forgotten.
        """
        if step >= self._void_step and generation <= self._void_generation:
            return False
        at = self._find(step)
        known = self._stretches[at] if at >= 0 and step < self._stretches[at].stop else None
        if known is not None and known.generation >= generation:
            return False
        use = self._count(shares)
        if known is not None:
            self._cut_out(at, step)
            at = self._find(step)
        self._insert(at, step, generation, use)
        self._total = self._total.plus(use, 1)
        return True

    def rewind(self, step: int) -> None:
        """Forget the steps from `step` on, because the run begins again there."""
        while self._stretches and self._stretches[-1].stop > step:
            last = self._stretches.pop()
            kept = max(0, step - last.first)
            self._total = self._total.plus(last.use, kept - (last.stop - last.first))
            if kept:
                self._stretches.append(_Stretch(last.first, step, last.generation, last.use))
            self._void_step = step
            self._void_generation = max(self._void_generation, last.generation)

    @property
    def total(self) -> SampleUse:
        """Uses over all committed steps."""
        return self._total

    def _find(self, step: int) -> int:
        """Return the index of the last stretch that begins at `step` or before, or -1."""
        return bisect_right(self._stretches, step, key=attrgetter("first")) - 1

    def _cut_out(self, at: int, step: int) -> None:
        """Take one step out of the stretch that holds it."""
        old = self._stretches[at]
        self._total = self._total.plus(old.use, -1)
        parts = [(old.first, step), (step + 1, old.stop)]
        self._stretches[at : at + 1] = [
            _Stretch(first, stop, old.generation, old.use) for first, stop in parts if first < stop
        ]

    def _insert(self, after: int, step: int, generation: int, use: SampleUse) -> None:
        before = self._stretches[after] if after >= 0 else None
        if before and (before.stop, before.generation, before.use) == (step, generation, use):
            self._stretches[after] = _Stretch(before.first, step + 1, generation, use)
        else:
            self._stretches.insert(after + 1, _Stretch(step, step + 1, generation, use))

    def _count(self, shares: Iterable[tuple[int, int]]) -> SampleUse:
        """Sweep over the shares by their first places."""
        num_places = different = used = reached = 0
        for index, (first, number) in enumerate(sorted(share for share in shares if share[1] > 0)):
            stop = first + number
            fresh = first if index == 0 else max(first, reached)
            num_places += number
            different += max(0, stop - fresh)
            used += max(0, min(stop, self.global_batch_size) - max(fresh, 0))
            reached = stop if index == 0 else max(reached, stop)
        return SampleUse(self.global_batch_size, used, num_places - different)
