"""How long to wait for those who make no progress: a limit that follows the time of a step."""

from __future__ import annotations

from collections import deque
from statistics import median

__all__ = ["Patience"]

_USUAL_STEPS = 5.0
_LONGEST_STEPS = 2.0
"""One slow step, for instance one that waited for data, says little of the next."""
_REMEMBERED = 10


class Patience:
    """Knows the last steps' times, and how long a step may take now.

    Args:
        floor_s: Never less than this.
        ceiling_s: Never more where steps are short; also the limit of a step of which nothing can
            be foretold.
    """

    def __init__(self, floor_s: float, ceiling_s: float):
        self._floor_s = floor_s
        self._short_ceiling_s = self._ceiling_s = max(ceiling_s, floor_s)
        self._times_s: deque[float] = deque(maxlen=_REMEMBERED)
        """For each micro-batch of the longest share."""
        self._share = 1
        self._is_first = True

    def begins(self, share: int, *, with_newcomer: bool) -> None:
        """Note that steps are divided anew.

        Args:
            share: Micro-batches of the longest share.
            with_newcomer: Whether somebody has not computed any step before. Its first one may be
                much longer, for it may have to compile; of those who have, the steps before tell.
        """
        self._share = share
        self._is_first = with_newcomer

    def heard(self, usual_step_s: float) -> None:
        """Note how long a step took before, as all members of a generation are told.

        Who computes nothing yet waits for the others' whole step.
        """
        self._ceiling_s = max(self._short_ceiling_s, _USUAL_STEPS * usual_step_s)

    def took(self, step_s: float, *, is_whole: bool = True) -> None:
        """Note a step's time; of one that went on after a loss, it says nothing of others."""
        if is_whole and not self._is_first:
            self._times_s.append(step_s / self._share)
        self._is_first = False

    @property
    def ceiling_s(self) -> float:
        """How long a step may take of which nothing can be foretold."""
        return self._ceiling_s

    @property
    def limit_s(self) -> float:
        """How long the next step may take."""
        if self._is_first:
            return self._ceiling_s
        if not self._times_s:
            return self._ceiling_s
        usual_s = _USUAL_STEPS * self._share * median(self._times_s)
        longest_s = _LONGEST_STEPS * self._share * max(self._times_s)
        return min(self._ceiling_s, max(self._floor_s, usual_s, longest_s))
