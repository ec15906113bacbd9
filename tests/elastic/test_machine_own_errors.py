"""Own errors of members: which end the run because they follow the data or the code."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    GroupLost,
    GroupPhase,
    LaunchGroup,
    RunPhase,
    SetRunPhase,
    Tick,
    WantedChanged,
)
from tests.elastic.driver import Driver, removed, training

pytestmark = pytest.mark.pure


def fails(driver: Driver, group_id: int, step: int, error: str = "ValueError: bad") -> str:
    """Let a member fail by its own error; return why the run ends, if it does."""
    driver.tell(GroupLost(group_id, said(step, error), own_error=True, step=step))
    return driver.machine.reason if driver.machine.phase == RunPhase.FAILED else ""


def said(step: int, error: str = "ValueError: bad") -> str:
    return f"Rank 0 failed at step {step}: {error}"


def replace_all(driver: Driver, step: int) -> None:
    """Let replacements come and copy, and all members enter at a step."""
    machine = driver.machine
    driver.enter(*machine.members, step=step)
    for _ in range(20):
        driver.wait(10)
        placing = [g.group_id for g in machine.groups.values() if g.phase == GroupPhase.PLACING]
        if placing:
            driver.ready(*placing)
            driver.enter(*machine.members, step=step)
    phases = {driver.phase(member) for member in machine.members}
    assert (len(machine.members), phases) == (machine.wanted, {GroupPhase.MEMBER})
    assert machine.phase == RunPhase.RUNNING


def follows(step: int, groups: str, first: str = "ValueError: bad") -> str:
    return (
        f"Step {step} failed in groups {groups}, also when it was begun again without those that"
        f" had failed: the error follows the data or the code. The first error: {said(step, first)}"
    )


def test_a_step_that_fails_in_one_group_after_the_other_ends_the_run_with_the_first_error() -> None:
    driver = training(4)
    assert fails(driver, 2, step=7, error="ValueError: in shard 3") == ""
    driver.enter(0, 1, 3, step=7)
    assert fails(driver, 0, step=7) == ""
    driver.enter(1, 3, step=7)
    reason = follows(7, "2, 0 and 3", "ValueError: in shard 3")
    assert (
        driver.tell(GroupLost(3, said(7), own_error=True, step=7))
        == [
            *removed(3, GroupPhase.LOST, said(7)),
            *removed(1, GroupPhase.LEFT, reason),
            *removed(4, GroupPhase.LEFT, reason),
            *removed(5, GroupPhase.LEFT, reason),
            *removed(6, GroupPhase.LEFT, reason),
            SetRunPhase(RunPhase.FAILED, reason),
        ]
        or driver.machine.reason == reason
    )
    assert driver.machine.phase == RunPhase.FAILED


def test_where_two_are_needed_and_two_train_the_second_error_at_a_step_ends_the_run() -> None:
    """Each time one holds the states until the replacement has copied them."""
    driver = training(2, minimum=2)
    assert fails(driver, 1, step=7) == ""
    assert driver.machine.phase == RunPhase.WAITING
    replace_all(driver, step=7)
    assert fails(driver, 0, step=7) == follows(7, "1 and 0")


def test_a_machine_that_fails_again_and_again_at_one_step_does_not_end_the_run_of_the_others() -> (
    None
):
    driver = training(3, minimum=3)
    bad = 1
    for _ in range(8):
        assert fails(driver, bad, step=7) == ""
        replace_all(driver, step=7)
        bad = max(driver.machine.groups)
        assert driver.machine.groups[bad].lineage == 1
    assert driver.machine.phase == RunPhase.RUNNING


@pytest.mark.parametrize("is_told_by", ["entry", "time"])
def test_an_error_at_a_step_that_was_committed_since_is_forgotten(is_told_by: str) -> None:
    driver = training(2, minimum=2)
    fails(driver, 1, step=7)
    replace_all(driver, step=7)
    if is_told_by == "entry":
        driver.tell(WantedChanged(3, "More nodes."))
        replace_all(driver, step=8)
    else:
        driver.tell(Tick(step=8))
    assert fails(driver, 0, step=7) == ""


def test_groups_that_fail_at_different_steps_do_not_end_the_run() -> None:
    driver = training(2, minimum=2)
    for step in range(7, 27):
        assert fails(driver, driver.machine.members[0], step) == ""
        replace_all(driver, step)
    assert driver.machine.phase == RunPhase.RUNNING


def test_groups_that_fail_side_by_side_do_not_end_the_run_before_the_step_is_done_again() -> None:
    """They may have met the same moment, such as a storage that was away."""
    driver = training(5)
    for group_id in (0, 1, 2, 3):
        assert fails(driver, group_id, step=7) == ""
    replace_all(driver, step=7)
    assert fails(driver, 4, step=7) == follows(7, "0, 1, 2, 3 and 4")


def test_a_run_that_began_again_remembers_the_step_that_fails() -> None:
    """One group raised and the other was killed with it, each time."""
    driver = training(2, minimum=2)
    fails(driver, 0, step=7)
    driver.tell(GroupLost(1, "Its node is gone."))
    assert "begins again" in driver.machine.reason
    replace_all(driver, step=4)
    assert driver.machine.members == (3, 4)
    assert fails(driver, 4, step=7) == follows(7, "0 and 4")


@pytest.mark.parametrize("own_error", [False, True])
def test_what_is_no_error_of_a_member_s_code_at_a_step_is_no_evidence(own_error: bool) -> None:
    driver = training(2, minimum=2)
    for _ in range(8):
        step = None if own_error else 7
        driver.tell(GroupLost(driver.machine.members[0], "Gone.", own_error, step))
        replace_all(driver, step=7)
    assert driver.machine.phase == RunPhase.RUNNING


def test_a_newcomer_that_fails_before_it_has_entered_is_no_evidence() -> None:
    driver = training(1)
    driver.tell(WantedChanged(2, "More nodes."))
    for group_id in range(1, 6):
        driver.ready(group_id)
        driver.enter(0, step=0)
        fails(driver, group_id, step=0)
        launches = driver.wait(100)
        assert isinstance(launches[0], LaunchGroup)
    assert driver.machine.phase == RunPhase.RUNNING
