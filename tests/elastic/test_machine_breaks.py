"""The connections of a generation break: it is built again, without those who do not answer."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    GroupLost,
    GroupPhase,
    RunPhase,
    SetRunPhase,
    StopGroup,
    WantedChanged,
)
from tests.elastic.driver import GONE, launched, removed, training

pytestmark = pytest.mark.pure


def test_a_generation_that_breaks_under_living_groups_is_built_again() -> None:
    driver = training(2)
    assert driver.breaks(1, step=4) == []
    assert driver.breaks(0, step=4, error="reset by peer") == [
        AnnounceGeneration(
            2,
            (0, 1),
            "All groups are alive, but their connections broke."
            " Step 4 broke under group 0: reset by peer",
        )
    ]


def test_connections_that_keep_breaking_at_one_step_are_built_again_after_growing_pauses() -> None:
    driver = training(2, back_off_s=1)
    driver.breaks(0, 1, step=4)
    for attempt, (times, pause_s) in enumerate([("once", 1), ("2 times", 2), ("3 times", 4)]):
        assert driver.breaks(0, 1, step=4) == [
            SetRunPhase(
                RunPhase.WAITING,
                f"All groups are alive, but reconnecting them has not helped {times};"
                f" they try again after {pause_s} s. Step 4 broke under group 0: connection closed",
            )
        ]
        assert driver.wait(pause_s - 0.5) == []
        assert [type(d) for d in driver.wait(0.5)] == [AnnounceGeneration]
        assert driver.machine.generation == attempt + 3
    driver.enter(0, 1, step=4)
    assert driver.machine.phase == RunPhase.RUNNING
    assert [type(d) for d in driver.breaks(0, 1, step=5)] == [AnnounceGeneration]


def test_a_silent_member_of_a_broken_generation_is_evicted_with_the_reason() -> None:
    driver = training(3, silence_s=60)
    driver.breaks(0, 2, step=4)
    assert driver.wait(59.5) == []
    reason = "It has not answered for 60 s since generation 1 broke."
    assert driver.wait(0.5) == [
        *removed(1, GroupPhase.LOST, reason),
        *launched(3, f"It replaces group 1: {reason}"),
        AnnounceGeneration(2, (0, 2), f"Group 1 was lost: {reason}"),
    ]
    assert driver.wait(1000) == []


def test_a_newcomers_first_step_gives_the_others_of_its_generation_longer() -> None:
    driver = training(2, silence_s=60, first_step_s=120, join_grace_s=0)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    driver.enter(0, 1, 2, step=4)  # nobody has done a step under it, and one none at all
    driver.breaks(0, 2, step=4)
    assert driver.wait(119.5) == []
    reason = "It has not answered for 120 s since generation 2 broke."
    assert driver.wait(0.5)[:2] == removed(1, GroupPhase.LOST, reason)


def test_the_first_step_of_those_that_are_left_may_take_no_longer_than_others() -> None:
    driver = training(3, silence_s=60, first_step_s=120)
    driver.tell(GroupLost(2, GONE))
    driver.enter(0, 1, step=4)  # neither has done a step of the second generation
    driver.breaks(0, step=4)
    assert driver.wait(59.5) == []
    reason = "It has not answered for 60 s since generation 2 broke."
    assert driver.wait(0.5)[:2] == removed(1, GroupPhase.LOST, reason)


def test_groups_that_wait_below_the_minimum_are_not_stopped_over_and_over() -> None:
    driver = training(3, minimum=3, silence_s=60)
    driver.tell(GroupLost(2, GONE))
    driver.breaks(0, 1, step=4)
    assert driver.wait(100) == []
    assert driver.wait(100) == []


def test_a_generation_below_a_raised_minimum_is_not_built_again_before_there_are_enough() -> None:
    driver = training(1)
    driver.tell(WantedChanged(2, "Both are needed.", minimum=2))
    assert driver.breaks(0, step=4) == [
        SetRunPhase(
            RunPhase.WAITING,
            "1 partition group is ready, 2 needed. Step 4 broke under group 0: connection closed",
        )
    ]
    assert driver.wait(1000) == []
    announced = [d for d in driver.ready(1) if isinstance(d, AnnounceGeneration)]
    assert [(d.number, d.groups) for d in announced] == [(2, (0, 1))]


def test_no_group_is_stopped_twice() -> None:
    driver = training(2, silence_s=1)
    driver.breaks(0, step=1)
    stops = [d.group_id for d in driver.wait(1) if isinstance(d, StopGroup)]
    assert stops == [1]
