"""A run of which nothing is heard: nobody is left who could miss a group."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    CancelRequested,
    Decision,
    GroupPhase,
    PauseRequested,
    RunPhase,
    Tick,
    WantedChanged,
)
from tests.elastic.driver import Driver, training

pytestmark = pytest.mark.pure

LIMITS = {"first_step_s": 20.0, "silence_s": 5.0}


def quiet(driver: Driver, seconds: float, usual_step_s: float = 1.0) -> list[Decision]:
    driver.now += seconds
    return driver.tell(Tick(usual_step_s, seconds))


@pytest.mark.parametrize("number", [1, 3])
def test_all_members_are_evicted_and_the_run_begins_again(number: int) -> None:
    driver = training(number, **LIMITS)
    assert quiet(driver, 39.0) == []
    quiet(driver, 41.0)
    for group_id in range(number):
        group = driver.machine.groups[group_id]
        assert group.phase is GroupPhase.LOST
        assert group.reason == "No group has said anything for 41 s."
    assert driver.machine.phase is RunPhase.WAITING
    driver.ready(*range(number, 2 * number))
    assert driver.machine.members == tuple(range(number, 2 * number))


def test_the_limit_follows_the_step() -> None:
    driver = training(1, **LIMITS)
    assert quiet(driver, 190.0, usual_step_s=20.0) == []
    assert quiet(driver, 210.0, usual_step_s=20.0) != []


@pytest.mark.parametrize("usual_step_s", [0.0, 1.0])
def test_the_first_step_of_a_run_may_take_as_long_as_a_start(usual_step_s: float) -> None:
    driver = Driver(1, **LIMITS, start_s=900.0)
    driver.start()
    driver.ready(0)
    driver.enter(0)
    assert quiet(driver, 899.0, usual_step_s) == []
    quiet(driver, 901.0, usual_step_s)
    assert driver.phase(0) is GroupPhase.LOST
    assert driver.machine.groups[0].reason == (
        "No group has said anything for 901 s. They were at their first step; groups.start_s says"
        " how long it may take."
    )


def test_a_run_that_is_to_end_is_not_waited_for_at_its_first_step() -> None:
    driver = Driver(1, **LIMITS, start_s=900.0)
    driver.start()
    driver.ready(0)
    driver.enter(0)
    driver.tell(CancelRequested("Enough."))
    quiet(driver, 41.0)
    assert driver.machine.phase is RunPhase.CANCELLED


def test_who_has_done_a_step_would_tell_of_a_newcomers_first_one_that_takes_too_long() -> None:
    driver = training(1, **LIMITS)
    driver.tell(WantedChanged(2, "The user asked for 2."))
    driver.ready(1)
    driver.enter(0, 1, step=5)
    assert quiet(driver, 39.0) == []
    quiet(driver, 41.0)
    assert driver.phase(0) is driver.phase(1) is GroupPhase.LOST


def test_a_generation_that_nobody_enters_and_nobody_tells_of() -> None:
    driver = Driver(1, **LIMITS)
    driver.start()
    driver.ready(0)
    assert quiet(driver, 39.0) == []
    quiet(driver, 41.0)
    assert driver.phase(0) is GroupPhase.LOST


def test_all_may_wait_for_a_checkpoint_at_the_end_or_before_a_pause() -> None:
    driver = training(2, **LIMITS, quiet_s=100.0)
    assert quiet(driver, 139.0) == []
    driver.tell(PauseRequested("The user pauses it."))
    assert quiet(driver, 139.0) == []
    quiet(driver, 141.0)
    assert driver.phase(0) is GroupPhase.LOST


def test_a_run_that_waits_for_groups_may_be_quiet() -> None:
    driver = Driver(2, 2, **LIMITS)
    driver.start()
    driver.ready(0)
    assert quiet(driver, 1e6) == []
    assert driver.phase(0) is GroupPhase.READY


def test_a_cancel_that_nobody_hears_ends_the_job_all_the_same() -> None:
    driver = training(2, **LIMITS)
    driver.tell(CancelRequested("Enough."))
    assert driver.machine.phase is not RunPhase.CANCELLED
    quiet(driver, 41.0, usual_step_s=0.0)
    assert driver.machine.phase is RunPhase.CANCELLED
