"""Groups that hang while they start: how long they may take, and what follows."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    GroupStarted,
    GroupUnplaced,
    MarkGroup,
    RunPhase,
    StopGroup,
    WantedChanged,
)
from tests.elastic.driver import Driver, launched, removed, training

pytestmark = pytest.mark.pure

HANGS = "It has not become ready within 600 s of its workers' start."
NEVER_RAN = "Its workers have not run within 600 s of its placement."


def starting() -> Driver:
    """Return a run in which groups 0 and 1 train and the workers of group 2 begin to run."""
    driver = training(2)
    driver.tell(WantedChanged(3, "More nodes."))
    driver.tell(GroupPlaced(2))
    assert driver.wait(100) == []
    assert driver.tell(GroupStarted(2)) == []
    return driver


def test_a_group_that_is_not_ready_in_time_is_evicted_and_replaced() -> None:
    driver = starting()
    assert driver.wait(599) == []
    assert driver.wait(1)[:2] == removed(2, GroupPhase.LOST, HANGS)
    assert driver.wait(1)[:2] == launched(3, f"It replaces group 2: {HANGS}")
    assert driver.machine.members == (0, 1)


def test_the_limit_is_a_rule_of_the_run() -> None:
    driver = Driver(1, start_s=1800)
    driver.start()
    driver.tell(GroupPlaced(0))
    driver.tell(GroupStarted(0))
    assert driver.wait(1799) == []
    assert StopGroup(0, HANGS.replace("600", "1800")) in driver.wait(1)


def test_workers_that_never_run_are_not_waited_for_either() -> None:
    driver = Driver(1)
    driver.start()
    assert driver.wait(10_000) == [], "nobody knows when there will be room"
    driver.tell(GroupPlaced(0))
    assert driver.wait(599) == []
    assert driver.wait(1)[:2] == removed(0, GroupPhase.LOST, NEVER_RAN)


def test_the_run_fails_when_groups_hang_at_every_start() -> None:
    driver = Driver(1)
    driver.start()
    for group_id in range(3):
        driver.tell(GroupPlaced(group_id))
        driver.tell(GroupStarted(group_id))
        driver.wait(600)
        driver.wait(10)
    assert driver.machine.phase is RunPhase.FAILED
    assert driver.machine.reason == (
        f"Groups could not start, 3 times in a row. The first error: {HANGS}"
    )


def test_workers_that_are_said_to_run_again_have_no_more_time_for_it() -> None:
    driver = starting()
    driver.wait(599)
    driver.tell(GroupStarted(2))
    assert StopGroup(2, HANGS) in driver.wait(1)


@pytest.mark.parametrize("is_over", [GroupReady(2), GroupLost(2, "Its node is gone.")])
def test_a_start_that_is_over_is_not_watched_any_more(is_over: GroupReady | GroupLost) -> None:
    driver = starting()
    driver.tell(is_over)
    driver.wait(10)
    assert driver.tell(GroupStarted(2)) == []
    assert not any(isinstance(decision, StopGroup) for decision in driver.wait(10_000))


def test_a_group_that_waits_for_room_again_has_all_its_time_once_it_has_room() -> None:
    driver = Driver(1)
    driver.start()
    driver.tell(GroupPlaced(0))
    driver.wait(500)
    again = "The supervisor was replaced before its run began: it waits for nodes again."
    assert driver.tell(GroupUnplaced(0)) == [MarkGroup(0, GroupPhase.PLACING, again)]
    assert driver.wait(10_000) == []
    driver.tell(GroupPlaced(0))
    assert driver.wait(599) == []
    assert driver.wait(1)[:2] == removed(0, GroupPhase.LOST, NEVER_RAN)


@pytest.mark.parametrize("since", [GroupStarted(2), GroupReady(2)])
def test_a_group_whose_run_has_begun_loses_no_room(since: GroupStarted | GroupReady) -> None:
    driver = starting()
    driver.tell(since)
    assert driver.tell(GroupUnplaced(2)) == []
