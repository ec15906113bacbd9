"""The clock of a run, which outlives its supervisors."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Seconds that never go back, and that go on where they were when the clock was pickled."""

    def __init__(self) -> None:
        self._offset_s = self._left_out_s = self._resumed_at = 0.0

    def __call__(self) -> float:
        """Return the time.

        Limits count by it: nobody could be heard between pickling and unpickling.
        """
        return time.monotonic() + self._offset_s

    def with_all(self) -> float:
        """Return the time with what passed between pickling and unpickling, as what it took has."""
        return self() + self._left_out_s

    def when(self, told_time: float) -> float:
        """Return when, `with_all`, something was of which somebody tells.

        That is now, unless it was before this clock went on: it is told late then.

        Args:
            told_time: When it was, in seconds since the epoch. The teller's clock may be another's:
                it decides nothing but who is late, and only so long after a supervisor was replaced
                as the two clocks differ.
        """
        late_s = time.time() - told_time if told_time < self._resumed_at else 0.0
        return self.with_all() - late_s

    def __getstate__(self) -> tuple[float, float, float]:
        return self(), self._left_out_s, time.time()

    def __setstate__(self, state: tuple[float, float, float]) -> None:
        now, left_out_s, pickled_at = state
        self._offset_s = now - time.monotonic()
        self._resumed_at = time.time()
        # Perhaps by two machines' clocks, of which nobody says that they are the same.
        self._left_out_s = left_out_s + max(0.0, self._resumed_at - pickled_at)
