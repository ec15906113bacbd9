"""Groups on nodes that are to be taken away: they leave in time, and nobody stops."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    Decision,
    GroupDraining,
    GroupLost,
    GroupPhase,
    MarkGroup,
    WantedChanged,
)
from tests.elastic.driver import Driver, launched, removed, training

pytestmark = pytest.mark.pure

NOTICE = "Node 1234abcd is being drained."


def drain(driver: Driver, group_id: int) -> list[Decision]:
    return driver.tell(GroupDraining(group_id, NOTICE))


def test_it_leaves_at_a_step_boundary_and_is_replaced_at_once() -> None:
    driver = training(3)
    assert drain(driver, 1) == [
        *launched(3, f"It replaces group 1: {NOTICE}"),
        MarkGroup(1, GroupPhase.LEAVING, NOTICE),
        AnnounceGeneration(2, (0, 2), f"Group 1 leaves: {NOTICE}"),
    ]
    assert drain(driver, 1) == []
    driver.enter(0, 2)
    assert driver.ready(3)[-1] == AnnounceGeneration(3, (0, 2, 3), "Group 3 joins.")


def test_a_group_that_does_not_train_yet_goes_at_once() -> None:
    driver = training(1)
    driver.tell(WantedChanged(2, "The user asked for 2."))
    assert drain(driver, 1) == [
        *launched(2, f"It replaces group 1: {NOTICE}"),
        *removed(1, GroupPhase.LEFT, NOTICE),
    ]


def test_the_last_one_trains_on_until_another_holds_the_states() -> None:
    driver = training(1)
    assert drain(driver, 0) == launched(1, f"It replaces group 0: {NOTICE}")
    assert driver.ready(1)[-1] == AnnounceGeneration(2, (0, 1), "Group 1 joins.")
    driver.enter(0)
    assert driver.enter(1, step=7)[-2:] == [
        MarkGroup(0, GroupPhase.LEAVING, NOTICE),
        AnnounceGeneration(3, (1,), f"Group 0 leaves: {NOTICE}"),
    ]


def test_it_stays_while_fewer_than_the_minimum_would_be_left() -> None:
    driver = training(2, minimum=2)
    assert drain(driver, 1) == launched(2, f"It replaces group 1: {NOTICE}")
    driver.ready(2)
    driver.enter(0, 1)
    assert driver.enter(2)[-1] == AnnounceGeneration(3, (0, 2), f"Group 1 leaves: {NOTICE}")


def test_a_node_that_goes_before_its_time_is_a_loss_like_any_other() -> None:
    driver = training(2, minimum=2)
    drain(driver, 1)
    decisions = driver.tell(GroupLost(1, "Its node is gone."))
    assert decisions[:2] == removed(1, GroupPhase.LOST, "Its node is gone.")
    assert driver.phase(2) == GroupPhase.PLACING
    assert 3 not in driver.machine.groups  # one replacement is enough


def test_a_drained_group_stays_until_another_holds_the_newest_states() -> None:
    driver = training(3)
    driver.tell(GroupLost(1, "Its node is gone."))
    driver.enter(2, step=5)  # group 0 missed the end of step 4, and copies it
    told = driver.tell(GroupDraining(2, "Its node is being drained."))
    assert not [d for d in told if isinstance(d, AnnounceGeneration)]
    told = driver.enter(0, step=6)
    assert [d.groups for d in told if isinstance(d, AnnounceGeneration)] == [(0,)]
