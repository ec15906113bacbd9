"""Goals of a benchmark: what is wanted, what was measured, and whether that is enough.

[Note: nothing passes unmeasured]
A goal that was not measured, for a system failed or was not run, counts as missed. So does a figure
that is no number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Bound", "Goal", "add_strict", "as_facts", "is_one_missed", "judge", "show_goals"]


class Bound(StrEnum):
    """On which side of the wanted figure a goal is reached."""

    AT_LEAST = "at least"
    AT_MOST = "at most"
    BELOW = "below"


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal, or a figure that is only told.

    Args:
        name: What is compared, and where.
        wanted: The figure that reaches the goal; none where it is only told.
        ratio: What was measured, a ratio unless the name says otherwise; none where it was not.
        reason: Why nothing was measured.
        bound: On which side of `wanted` it is reached.
    """

    name: str
    wanted: float | None
    ratio: float | None
    reason: str = ""
    bound: Bound = Bound.AT_LEAST

    @property
    def is_reached(self) -> bool | None:
        """Whether it is reached; none where nothing is wanted or nothing was measured."""
        if self.wanted is None or self.ratio is None:
            return None
        match self.bound:
            case Bound.AT_LEAST:
                return self.ratio >= self.wanted
            case Bound.AT_MOST:
                return self.ratio <= self.wanted
            case Bound.BELOW:
                return self.ratio < self.wanted

    @property
    def is_missed(self) -> bool:
        """Whether something is wanted and was not shown; see [Note: nothing passes unmeasured]."""
        return self.wanted is not None and self.is_reached is not True

    def as_json(self) -> dict[str, Any]:
        """Return what the meta file holds of it."""
        value = {
            "name": self.name,
            "wanted": self.wanted,
            "ratio": self.ratio,
            "reached": self.is_reached,
        }
        if self.bound is not Bound.AT_LEAST:
            value["bound"] = self.bound.value
        return value | ({"not_measured": self.reason} if self.reason else {})


def is_one_missed(goals: Sequence[Goal]) -> bool:
    """Whether a goal was missed, or there is none."""
    return not goals or any(goal.is_missed for goal in goals)


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Add the option that makes a missed goal fail the command, see `judge`."""
    words = "exit with 1 if a goal is missed or not measured"
    parser.add_argument("--strict", action="store_true", help=words)


def as_facts(goals: Iterable[Goal]) -> list[dict[str, Any]]:
    """Return what the meta file holds of goals."""
    return [goal.as_json() for goal in goals]


def judge(console: Console, goals: Sequence[Goal], *, strict: bool) -> int:
    """Print each goal with whether it was reached; return the command's exit status."""
    show_goals(console, goals, "Goals")
    return int(strict and is_one_missed(goals))


def show_goals(
    console: Console, goals: Sequence[Goal], title: str = "Goals, ratios of medians"
) -> None:
    """Print one row a goal, and below why some were not measured."""
    table = Table(title=title, title_justify="left")
    for heading in ("goal", "wanted", "measured", ""):
        table.add_column(heading, justify="left" if heading == "goal" else "right")
    for goal in goals:
        table.add_row(goal.name, _wanted(goal), _measured(goal), _outcome(goal))
    console.print(table)
    for goal in goals:
        if goal.reason:
            style = "bold red" if goal.is_missed else None
            words = f"{goal.name}: not measured: {goal.reason}"
            console.print(words, style=style, markup=False)


def _wanted(goal: Goal) -> str:
    if goal.wanted is None:
        return "–"
    number = f"{goal.wanted:g}" if goal.wanted >= 1e-3 or not goal.wanted else f"{goal.wanted:.0e}"
    return number if goal.bound is Bound.AT_LEAST else f"{goal.bound} {number}"


def _measured(goal: Goal) -> str:
    if goal.ratio is None:
        return "–"
    is_tiny = 0 < abs(goal.ratio) < 1e-3
    return f"{goal.ratio:.1e}" if is_tiny else f"{goal.ratio:.3f}"


def _outcome(goal: Goal) -> str:
    if goal.ratio is None:
        return "[red]not measured[/red]" if goal.is_missed else "not measured"
    if goal.wanted is None:
        return "no goal"
    return "[red]missed[/red]" if goal.is_missed else "reached"
