"""Pauses between attempts that keep failing, and the error that the reader should see first."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BackOff"]

_MOST_DOUBLINGS = 32  # beyond any longest pause, and far from where a float overflows


@dataclass(slots=True)
class BackOff:
    """Counts attempts that failed in a row.

    Args:
        first_s: Pause after the first failed attempt; it doubles with each further one.
        longest_s: Longest pause.
        num_free: How many attempts of a row may fail before the first that a pause follows.
        failed: Attempts that failed in a row.
        not_before: When the next attempt may begin.
        first_error: The first error of the row; one of our own code or data goes before the loss
            of a machine, which is more often a consequence than a cause.
    """

    first_s: float
    longest_s: float
    num_free: int = 0
    failed: int = 0
    not_before: float = 0.0
    first_error: str = ""
    _is_own_error: bool = False

    @property
    def pause_s(self) -> float:
        """The pause after the attempts that have failed so far."""
        paid = self.failed - self.num_free
        if paid <= 0:
            return 0.0
        return min(self.first_s * 2.0 ** min(paid - 1, _MOST_DOUBLINGS), self.longest_s)

    def fail(self, attempt: int, error: str, own_error: bool, now: float) -> None:
        """Note a failure. Those that began side by side, as the same attempt, count once.

        Args:
            attempt: The value of `failed` when it began.
            error: What happened.
            own_error: Whether code or data failed, rather than a machine.
            now: When.
        """
        self.failed = max(self.failed, min(self.failed, attempt) + 1)
        self.not_before = now + self.pause_s
        if not self.first_error or (own_error and not self._is_own_error):
            self.first_error, self._is_own_error = error, own_error

    def succeed(self) -> None:
        """End the row."""
        self.failed, self.not_before = 0, 0.0
        self.first_error, self._is_own_error = "", False
