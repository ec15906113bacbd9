"""Groups that fall silent between two generations, and newcomers that cannot get in."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    Decision,
    GroupBroken,
    GroupDraining,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    GroupsMissed,
    GroupTrained,
    LaunchGroup,
    PauseRequested,
    RunPhase,
    WantedChanged,
)
from tests.elastic.driver import GONE, Driver, training

pytestmark = pytest.mark.pure

LIMITS = {"first_step_s": 120.0, "silence_s": 15.0, "join_grace_s": 0.0}


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


@pytest.mark.parametrize("trained", [True, False], ids=["all have trained", "a newcomer has not"])
def test_one_that_is_at_its_first_step_with_a_newcomer_is_given_longer(trained: bool) -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    driver.enter(0, 1, 2, step=7)
    if trained:
        driver.tell(GroupTrained(2, 2))
    driver.tell(GroupBroken(0, 2, 7, "timed out"))
    driver.tell(WantedChanged(4, "The user asked for 4."))
    assert announced(driver.ready(3)) == [(0, 1, 2, 3)]
    missed(driver, 0, 1)
    limit_s = 15 if trained else 120
    assert announced(missed(driver, 0, 1, after_s=limit_s - 1)) == []
    assert announced(missed(driver, 0, 1, after_s=1)) == [(0, 2, 3)]


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
    for _ in range(2):
        number = driver.machine.generation
        driver.tell(GroupBroken(2, number, 0, "cannot connect", holds_state=False))
        told = driver.wait(2.1)
    assert announced(told) == [(0, 1)]
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


def test_newcomers_that_hold_the_only_states_are_not_given_up() -> None:
    driver = training(1, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(1, 2)
    driver.enter(0, step=4)
    for group_id in (1, 2):
        driver.tell(GroupBroken(group_id, 2, 5, "connection closed", holds_state=True))
    assert announced(driver.tell(GroupLost(0, GONE))) == [(1, 2)]
    for _ in range(3):
        driver.breaks(1, 2, step=5, error="cannot connect")
        driver.wait(30.0)
    assert driver.phase(1) is driver.phase(2) is GroupPhase.READY


def test_those_that_wait_for_one_that_cannot_enter_are_not_taken_for_silent() -> None:
    driver = training(3, **LIMITS)
    driver.breaks(0, 1, 2, step=5)
    for _ in range(8):
        driver.breaks(2, step=5, error="cannot connect to group 1")
        before = driver.machine.generation
        for _ in range(140):
            if driver.machine.generation > before:
                break
            driver.wait(0.5)
        assert driver.machine.generation > before
    assert [driver.phase(group_id) for group_id in range(3)] == [GroupPhase.MEMBER] * 3


@pytest.mark.parametrize("ends", ["pause", "scale-down"])
def test_a_member_that_skipped_a_broken_generation_leaves_in_its_own_time(ends: str) -> None:
    driver = training(4, **LIMITS)
    driver.tell(GroupLost(2, GONE))
    driver.tell(GroupLost(3, GONE))
    driver.tell(GroupBroken(0, 2, 7, "superseded"))
    driver.tell(GroupBroken(1, 1, 7, "connection closed"))
    driver.enter(0, 1, step=7)
    driver.wait(20.0)
    if ends == "pause":
        driver.tell(PauseRequested("The user pauses it."))
    else:
        driver.tell(WantedChanged(1, "The user asked for 1."))
    assert driver.phase(1) is GroupPhase.LEAVING
    driver.wait(1.0)
    assert driver.phase(1) is GroupPhase.LEAVING


def test_a_newcomer_that_copies_is_missed_anew_each_time() -> None:
    driver = training(2, **LIMITS)
    driver.tell(WantedChanged(3, "The user asked for 3."))
    driver.ready(2)
    missed(driver, 0, 2)
    driver.enter(0, 1, step=4)  # group 2 is there, and copies
    driver.tell(GroupLost(1, GONE))
    assert missed(driver, 0, 2, after_s=60) == []
    assert driver.phase(2) is GroupPhase.READY


def test_a_host_that_is_cut_off_is_at_fault_and_not_all_the_others() -> None:
    driver = training(5, **LIMITS)
    driver.tell(GroupLost(4, GONE))
    for _ in range(9):
        missed(driver, 0, 1, 2, 3, after_s=2.0)
        for group_id in (1, 2, 3):
            missed(driver, group_id, 0, after_s=0.05)
    assert driver.phase(0) is GroupPhase.LOST
    assert driver.machine.members == (1, 2, 3)


def test_a_member_that_is_cut_off_is_at_fault_and_not_the_host() -> None:
    driver = training(3, **LIMITS)
    driver.tell(WantedChanged(4, "The user asked for 4."))
    driver.ready(3)
    for _ in range(9):
        missed(driver, 2, 0, after_s=2.0)
        for group_id in (0, 1):
            missed(driver, group_id, 2, after_s=0.05)
    assert driver.phase(2) is GroupPhase.LOST
    assert driver.phase(0) is driver.phase(1) is GroupPhase.MEMBER


def test_several_silent_groups_are_found_by_the_only_one_that_speaks() -> None:
    driver = training(5, **LIMITS)
    driver.tell(GroupLost(4, GONE))
    missed(driver, 1, 0, 2, 3)
    missed(driver, 1, 0, 2, 3, after_s=15)
    assert driver.machine.members == (1,)


def test_who_can_be_spared_is_known_where_nobody_can_train() -> None:
    driver = training(3, **LIMITS)
    driver.breaks(0, 1, 2, step=5)
    driver.breaks(0, 1, 2, step=5)
    assert driver.machine.generation == 2, "they try again after a pause"
    told = driver.tell(GroupDraining(2, "Its node is being drained."))
    assert announced(told) == [(0, 1)]


def test_a_group_built_to_begin_the_run_is_of_no_use_once_others_have_begun() -> None:
    driver = Driver(2, start_grace_s=20.0)
    driver.start()
    driver.ready(0)
    driver.tell(GroupPlaced(1))
    driver.wait(21.0)
    driver.enter(0, step=0)
    told = driver.tell(GroupReady(1))
    assert [d.begins_run for d in told if isinstance(d, AnnounceGeneration)] == [False]
    driver.enter(0, step=100)
    driver.tell(GroupBroken(1, 2, 0, "connection closed", holds_state=False))
    told = driver.tell(GroupLost(0, GONE))
    assert driver.phase(1) is GroupPhase.LEFT
    assert [d.begins_run for d in told if isinstance(d, LaunchGroup)] == [True, True]
