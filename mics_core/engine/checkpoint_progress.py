"""How far a worker is with a checkpoint, and the one number by which it tells all others.

See [Note: when a checkpoint is complete] in `mics_core.engine.checkpoint`.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic

__all__ = ["ABANDONED", "BROKEN", "NOTHING_TO_WRITE", "Writing", "part_that_failed"]

NOTHING_TO_WRITE = math.inf
"""What a worker that writes no part says of its progress."""
ABANDONED = 1e300
"""What one says that has left a thread behind; more than any step, and less than nothing."""
BROKEN = -math.inf
"""Heard where the others cannot be asked any more."""
_UNDER_WAY = 0.0
_ONE_PART = 2.0**-20
"""A failure is the step and the part in one number; 2^20 parts are more than anybody has groups."""


@dataclass(slots=True)
class Writing:
    """A checkpoint under way, as one worker sees it.

    Args:
        step: Steps committed in it.
        groups: Ids of the groups that write it, by part.
        number: This worker's part.
        fingerprint: Of this attempt.
        written: Done when it is written and recorded, with the problem or nothing.
        late_at: When it is given up unless it is done; a time of `monotonic`.
        published: Done when the checkpoint is visible, on the worker that makes it so.
        left: Those of the writing groups that are still there, and have begun it.
        is_over: Whether it is known how it ends; nobody begins another before all are done with it.
        has_failed: Whether it is known to have failed.
        owes_report: Whether this worker has yet to tell why its part failed.
    """

    step: int
    groups: tuple[int, ...]
    number: int
    fingerprint: str
    written: Future[str]
    late_at: float
    left: tuple[int, ...]
    published: Future[str] | None = None
    is_over: bool = False
    has_failed: bool = False
    owes_report: bool = False

    @property
    def under_way(self) -> list[Future[str]]:
        """What is not done yet."""
        parts = [self.written] if self.published is None else [self.written, self.published]
        return [part for part in parts if not part.done()]

    @property
    def is_late(self) -> bool:
        """Whether the storage has had all the time that it gets, and is not done."""
        return bool(self.under_way) and monotonic() > self.late_at

    def progress(self, may_leave: bool) -> float:
        """Return what this worker says of it.

        Its step once that is written, its negative with the part if that failed, 0 while it is
        written, `NOTHING_TO_WRITE` where what was written is of no use any more.

        Args:
            may_leave: Whether a thread that has had no answer in time may be left behind, which
                `ABANDONED` says.
        """
        if not self.is_over:
            if not self.written.done():
                return self._failure if self.is_late else _UNDER_WAY
            return self._failure if self.written.result() else float(self.step)
        if not self.under_way:
            return NOTHING_TO_WRITE
        return ABANDONED if self.is_late and may_leave else _UNDER_WAY

    @property
    def _failure(self) -> float:
        return -(self.step + (self.number + 1) * _ONE_PART)


def part_that_failed(failure: float) -> int:
    """Return which part a failure is of, from the number that tells of it."""
    return round(-failure % 1.0 / _ONE_PART) - 1
