"""Groups that fall silent between two generations, and newcomers that cannot get in."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    Decision,
    GroupBroken,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupsMissed,
    GroupTrained,
    RunPhase,
    WantedChanged,
)
from tests.elastic.driver import Driver, training

pytestmark = pytest.mark.pure

LIMITS = {"first_step_s": 120.0, "silence_s": 15.0, "join_grace_s": 0.0}
GONE = "Its node is gone."


def missed(driver: Driver, by: int, *missing: int, after_s: float = 0.0) -> list[Decision]:
    driver.now += after_s
    return driver.tell(GroupsMissed(by, driver.machine.generation, missing))


def announced(decisions: list[Decision]) -> list[tuple[int, ...]]:
    return [d.groups for d in decisions if isinstance(d, AnnounceGeneration)]


def test_a_group_that_is_silent_while_another_is_lost_is_found_at_the_next_door() -> None:
    driver = training(3, **LIMITS)
    assert announced(driver.tell(GroupLost(1, GONE))) == [(0, 2)]
    driver.tell(GroupBroken(0, 1, 7, "connection closed"))
    assert missed(driver, 0, 2, after_s=2) == []
    assert missed(driver, 0, 2, after_s=14) == []
    assert announced(missed(driver, 0, 2, after_s=2)) == [(0,)]
    assert driver.phase(2) is GroupPhase.LOST
    assert driver.machine.groups[2].reason == (
        "It does not come to the next generation: group 0 has waited for it for 16 s."
    )


def test_changes_that_overtake_each_other_give_a_silent_group_no_more_time() -> None:
    driver = training(4, **LIMITS)
    driver.tell(GroupLost(1, GONE))
    missed(driver, 0, 2, after_s=2)
    driver.now += 10
    driver.tell(GroupLost(3, GONE))
    assert announced(missed(driver, 0, 2, after_s=5)) == [(0,)]


def test_a_group_that_comes_late_is_not_missed_any_more() -> None:
    driver = training(3, **LIMITS)
    driver.tell(GroupLost(1, GONE))
    missed(driver, 0, 2)
    driver.enter(2, step=7)
    assert missed(driver, 0, 2, after_s=60) == [], "that was said before it came"
    driver.enter(0, step=7)
    driver.tell(GroupTrained(2, driver.machine.generation))
    driver.ready(3)
    assert missed(driver, 0, 2, after_s=60) == [], "it counts from here on"
    assert announced(missed(driver, 0, 2, after_s=15)) == [(0, 3)]


def test_a_newcomer_that_hangs_at_the_door_is_given_up_and_the_members_train_on() -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    assert announced(driver.ready(2)) == [(0, 1, 2)]
    missed(driver, 0, 2)
    assert announced(missed(driver, 1, 2, after_s=15)) == [(0, 1)]
    assert driver.phase(2) is GroupPhase.LOST


def test_a_newcomer_that_cannot_reach_the_members_has_no_say_against_them() -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    for _ in range(10):
        assert missed(driver, 2, 0, 1, after_s=60) == []


def test_groups_that_begin_the_run_miss_one_of_them() -> None:
    driver = Driver(3, **LIMITS)
    driver.start()
    driver.ready(0, 1, 2)
    missed(driver, 0, 1)
    assert announced(missed(driver, 2, 1, after_s=15)) == [(0, 2)]


def test_one_that_is_at_its_first_step_is_given_longer() -> None:
    driver = training(3, **LIMITS)
    driver.tell(GroupLost(2, GONE))
    driver.enter(0, 1, step=7)
    driver.tell(GroupBroken(0, 2, 7, "timed out"))
    driver.ready(3)
    missed(driver, 0, 1)
    assert announced(missed(driver, 0, 1, after_s=119)) == []
    assert announced(missed(driver, 0, 1, after_s=1)) == [(0, 3)]


def test_one_that_cannot_enter_is_enough_to_meet_again() -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    assert driver.breaks(2, step=0, error="cannot connect") == []
    assert announced(driver.wait(1.9)) == [], "a loss may be the cause, and be heard of soon"
    assert announced(driver.wait(0.2)) == [(0, 1, 2)]


def test_a_newcomer_that_cannot_get_in_twice_is_given_up() -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    driver.breaks(2, step=0, error="cannot connect")
    driver.wait(2.1)
    driver.breaks(2, step=0, error="cannot connect")
    assert announced(driver.wait(2.1)) == [(0, 1)]
    assert driver.machine.groups[2].reason == (
        "It cannot join the others. Step 0 broke under group 2: cannot connect"
    )
    driver.enter(0, 1, step=9)
    assert driver.machine.phase is RunPhase.RUNNING


def test_no_leave_of_its_own_will_takes_the_newest_states_away() -> None:
    driver = training(3, **LIMITS)
    driver.tell(GroupLost(1, GONE))
    driver.enter(2, step=5)  # group 0 missed the end of step 4, and copies it
    driver.tell(WantedChanged(2, "The user asked for 2."))
    assert announced(driver.tell(WantedChanged(1, "The user asked for 1."))) == []
    assert driver.phase(2) is GroupPhase.MEMBER
    number = driver.machine.generation
    assert announced(driver.tell(GroupEntered(0, number, 6))) == [(0,)]
    assert driver.phase(2) is GroupPhase.LEAVING
