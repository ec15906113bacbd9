"""Goals of benchmarks: on which side they are reached, and what fails the command."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from benchmarks.harness.goals import Bound, Goal, is_one_missed, judge


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        (Bound.AT_LEAST, [False, True, True]),
        (Bound.AT_MOST, [True, True, False]),
        (Bound.BELOW, [True, False, False]),
    ],
)
def test_a_goal_is_reached_on_its_side_of_what_is_wanted(bound: Bound, reached: list[bool]) -> None:
    goals = [Goal("stall", 0.5, measured, bound=bound) for measured in (0.4, 0.5, 0.6)]
    assert [goal.is_reached for goal in goals] == reached
    assert [goal.is_missed for goal in goals] == [not each for each in reached]


@pytest.mark.parametrize("bound", Bound)
def test_what_is_no_number_or_was_not_measured_is_missed(bound: Bound) -> None:
    assert Goal("loss", 1e-5, math.nan, bound=bound).is_missed
    assert Goal("loss", 1e-5, None, "it failed", bound).is_missed
    assert not Goal("loss", None, None, "it failed", bound).is_missed


def test_only_a_bound_other_than_the_usual_is_written() -> None:
    assert "bound" not in Goal("speed", 0.99, 1.0).as_json()
    assert Goal("stall", 0.5, 0.4, bound=Bound.BELOW).as_json() == {
        "name": "stall",
        "wanted": 0.5,
        "ratio": 0.4,
        "reached": True,
        "bound": "below",
    }


def test_a_missed_goal_fails_the_command_only_where_that_is_asked_for() -> None:
    console = Console(record=True, width=100)
    reached = Goal("stall", 0.5, 0.4, bound=Bound.BELOW)
    missed = Goal("losses", 1e-5, 2e-5, bound=Bound.AT_MOST)
    assert judge(console, [reached], strict=True) == 0
    assert judge(console, [reached, missed], strict=False) == 0
    assert judge(console, [reached, missed], strict=True) == 1
    words = console.export_text()
    assert "below 0.5" in words
    assert "at most 1e-05" in words
    assert "2.0e-05" in words
    assert ("reached" in words, "missed" in words) == (True, True)


def test_no_goal_at_all_is_a_missed_one() -> None:
    assert is_one_missed([])
