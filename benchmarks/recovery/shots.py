"""What is done to a system of the comparison, and how it tells what that cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.recovery.outcome import Outcome
from benchmarks.recovery.setting import Course

__all__ = ["Report", "Shots"]

Report = Callable[[int, str, Outcome], None]
"""Takes each outcome as it comes: the number of the turn, the fault, what it cost."""


@dataclass(frozen=True, slots=True)
class Shots:
    """What is to be done to one system.

    Args:
        course: The faults, in this order, in each turn.
        repetitions: Turns.
        seed: Of the choice of victims.
        folder: For what the system writes; its own.
        tokens: The file of tokens.
    """

    course: Course
    repetitions: int
    seed: int
    folder: Path
    tokens: Path

    def inflict(self, do: Callable[[str], Outcome], report: Report) -> None:
        """Do the faults in turn and report what each cost."""
        for turn in range(self.repetitions):
            for fault in self.course.faults:
                report(turn + 1, fault, do(fault))
