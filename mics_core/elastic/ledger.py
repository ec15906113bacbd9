"""The ledger of samples: how often each place of each global batch went into a committed step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class SampleLedger:
    """Counts the samples of committed steps from what the groups say that they used.

    A step that is committed again, because the generation that had committed it was lost as a
    whole, replaces its earlier entry: the model states of that generation are gone with it.
    """

    global_batch_size: int
    _generations: dict[int, int] = field(default_factory=dict)
    _uses: dict[int, SampleUse] = field(default_factory=dict)
    _total: SampleUse = SampleUse(0, 0, 0)

    def commit(self, step: int, generation: int, shares: Iterable[tuple[int, int]]) -> bool:
        """Enter a committed step.

        Args:
            step: Number of the step.
            generation: Generation that committed it.
            shares: For each group the first place in the global batch and the number of places.

        Returns:
            Whether the entry is new; false for a step of this or an older generation that is
            already in the ledger, as every group reports the same commit.
        """
        if self._generations.get(step, 0) >= generation:
            return False
        use = self._count(shares)
        self._add(self._uses.get(step), -1)
        self._generations[step], self._uses[step] = generation, use
        self._add(use, 1)
        return True

    def rewind(self, step: int) -> None:
        """Forget the steps from `step` on, because the run begins again there."""
        for known in [number for number in self._uses if number >= step]:
            self._add(self._uses.pop(known), -1)
            del self._generations[known]

    @property
    def total(self) -> SampleUse:
        """Uses over all committed steps."""
        return self._total

    def _count(self, shares: Iterable[tuple[int, int]]) -> SampleUse:
        places = [place for first, number in shares for place in range(first, first + number)]
        used = len(set(places) & set(range(self.global_batch_size)))
        return SampleUse(self.global_batch_size, used, len(places) - len(set(places)))

    def _add(self, use: SampleUse | None, sign: int) -> None:
        if use is not None:
            self._total = SampleUse(
                self._total.due + sign * use.due,
                self._total.used + sign * use.used,
                self._total.repeated + sign * use.repeated,
            )
