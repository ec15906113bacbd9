"""The number of wanted groups changes: who is launched, and who leaves."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    GroupBroken,
    GroupEnded,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    MarkGroup,
)
from tests.elastic.driver import GONE, launched, removed, scaled, training

pytestmark = pytest.mark.pure


def test_scaling_up_launches_the_difference() -> None:
    driver = training(1)
    assert scaled(driver, 3) == [
        *launched(1, "The user asked for 3."),
        *launched(2, "The user asked for 3."),
    ]


def test_scaling_down_lets_go_first_who_does_not_train_yet_and_then_the_youngest() -> None:
    driver = training(2)
    scaled(driver, 5)
    driver.tell(GroupPlaced(2))
    driver.ready(4)
    driver.wait(2)  # announced, not yet entered
    reason = "1 partition group is wanted: The user asked for 1."
    assert scaled(driver, 1) == [
        *removed(3, GroupPhase.LEFT, reason),
        *removed(2, GroupPhase.LEFT, reason),
    ]
    assert driver.enter(0, step=4)[1:] == [
        MarkGroup(4, GroupPhase.LEAVING, reason),
        MarkGroup(1, GroupPhase.LEAVING, reason),
        AnnounceGeneration(3, (0,), f"Group 1 leaves: {reason} Group 4 leaves: {reason}"),
    ]
    assert driver.tell(GroupEnded(1, finished=False)) == [MarkGroup(1, GroupPhase.LEFT, reason)]
    assert driver.tell(GroupEnded(4, finished=False)) == [MarkGroup(4, GroupPhase.LEFT, reason)]


def test_scaling_up_again_while_a_group_leaves_launches_a_new_one() -> None:
    driver = training(2)
    scaled(driver, 1)
    assert scaled(driver, 2) == launched(2, "The user asked for 2.")
    assert driver.phase(1) == GroupPhase.LEAVING
    driver.enter(0)
    assert driver.ready(2)[-1] == AnnounceGeneration(3, (0, 2), "Group 2 joins.")


def test_scaling_down_and_up_between_two_messages_leaves_no_vacancy_behind() -> None:
    driver = training(3)
    driver.tell(GroupLost(2, GONE))
    scaled(driver, 2)
    assert scaled(driver, 3) == launched(4, "The user asked for 3.")


def test_a_leaving_group_that_dies_is_not_replaced_and_disturbs_nobody() -> None:
    driver = training(3)
    scaled(driver, 2)
    assert driver.tell(GroupLost(2, GONE)) == removed(2, GroupPhase.LOST, GONE)


def test_a_leaving_group_that_hangs_is_evicted_when_its_generation_breaks() -> None:
    driver = training(3, silence_s=60)
    scaled(driver, 2)
    assert driver.tell(GroupBroken(0, 1, 8, "timed out")) == []
    assert driver.tell(GroupBroken(1, 1, 8, "closed")) == []
    assert driver.wait(59) == []
    reason = "It has not answered for 60 s since generation 1 broke."
    assert driver.wait(1) == removed(2, GroupPhase.LOST, reason)
