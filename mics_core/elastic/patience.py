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
        self._is_first = True

    def began_anew(self) -> None:
        """Note that others compute now: a newcomer's first step may be much longer."""
        self._is_first = True

    def shares_changed(self, factor: float) -> None:
        """Note that those who compute have done so before, and how many times as much each has now.

        So there is nothing to compile, and what is known of a step tells how long the next takes.
        """
        self._times_s = deque((factor * took_s for took_s in self._times_s), maxlen=_REMEMBERED)

    def heard(self, usual_step_s: float) -> None:
        """Note how long a step took before, as all members of a generation are told.

        Who computes nothing yet waits for the others' whole step.
        """
        self._ceiling_s = max(self._short_ceiling_s, _USUAL_STEPS * usual_step_s)

    def took(self, step_s: float) -> None:
        """Note a step's time."""
        if not self._is_first:
            self._times_s.append(step_s)
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
        usual_s = _USUAL_STEPS * median(self._times_s)
        longest_s = _LONGEST_STEPS * max(self._times_s)
        return min(self._ceiling_s, max(self._floor_s, usual_s, longest_s))
