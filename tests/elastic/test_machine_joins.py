"""Groups join a run that trains: whom they wait for, and who joins together."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    MarkGroup,
    RunPhase,
    SetRunPhase,
)
from tests.elastic.driver import BUILT, GONE, launched, scaled, training

pytestmark = pytest.mark.pure


def test_a_group_joins_behind_the_members() -> None:
    driver = training(2)
    assert scaled(driver, 3) == launched(2, "The user asked for 3.")
    assert driver.ready(2) == [
        MarkGroup(2, GroupPhase.READY, BUILT),
        AnnounceGeneration(2, (0, 1, 2), "Group 2 joins."),
    ]
    assert driver.enter(0, 1, 2, step=7) == [
        SetRunPhase(RunPhase.RUNNING, "Training with 3 partition groups."),
        MarkGroup(2, GroupPhase.MEMBER, "It trains since step 7 (generation 2)."),
    ]


def test_a_group_that_is_ready_waits_until_those_before_it_hold_the_states() -> None:
    driver = training(1)
    scaled(driver, 4)
    assert driver.ready(2)[-1] == AnnounceGeneration(2, (0, 2), "Group 2 joins.")
    for late in (1, 3):
        assert driver.ready(late) == [MarkGroup(late, GroupPhase.READY, BUILT)]
    driver.enter(0, step=3)
    # Group 2 has copied; those that came meanwhile join together.
    assert driver.enter(2, step=5)[-1] == AnnounceGeneration(
        3, (0, 2, 1, 3), "Groups 1 and 3 join."
    )


def test_groups_that_become_ready_at_the_same_moment_join_together() -> None:
    driver = training(2, join_grace_s=2)
    scaled(driver, 4)
    driver.tell(GroupPlaced(2))
    driver.tell(GroupPlaced(3))
    assert driver.tell(GroupReady(2)) == [MarkGroup(2, GroupPhase.READY, BUILT)]
    assert driver.wait(1.5) == []
    assert driver.tell(GroupReady(3)) == [
        MarkGroup(3, GroupPhase.READY, BUILT),
        AnnounceGeneration(2, (0, 1, 2, 3), "Groups 2 and 3 join."),
    ]


def test_a_group_that_is_ready_waits_only_so_long_for_others_that_start() -> None:
    driver = training(2, join_grace_s=2)
    scaled(driver, 4)
    driver.tell(GroupPlaced(3))
    assert driver.ready(2) == [MarkGroup(2, GroupPhase.READY, BUILT)]
    assert driver.wait(1.5) == []
    assert driver.wait(0.5) == [AnnounceGeneration(2, (0, 1, 2), "Group 2 joins.")]


@pytest.mark.parametrize("why", ["lost", "broken", "the other is lost"])
def test_nobody_waits_for_groups_that_start_when_the_members_do_not_train(why: str) -> None:
    driver = training(2, join_grace_s=2)
    scaled(driver, 4)
    driver.tell(GroupPlaced(3))
    driver.ready(2)
    if why == "lost":
        decisions = driver.tell(GroupLost(1, GONE))
        members = (0, 2)
    elif why == "broken":
        decisions = driver.breaks(0, step=4)
        members = (0, 1, 2)
    else:
        decisions = driver.tell(GroupLost(3, GONE))
        members = (0, 1, 2)
    announced = [d.groups for d in decisions if isinstance(d, AnnounceGeneration)]
    assert announced == [members]


def test_groups_that_waited_for_the_minimum_join_together() -> None:
    driver = training(3, minimum=3)
    driver.tell(GroupLost(1, GONE))
    driver.tell(GroupLost(2, GONE))
    assert driver.ready(4) == [
        MarkGroup(4, GroupPhase.READY, BUILT),
        SetRunPhase(
            RunPhase.WAITING,
            "2 partition groups are ready, 3 needed."
            " Group 1 was lost: Its node is gone. Group 2 was lost: Its node is gone.",
        ),
    ]
    assert driver.ready(3)[-1] == AnnounceGeneration(
        2,
        (0, 3, 4),
        "Group 1 was lost: Its node is gone. Group 2 was lost: Its node is gone."
        " Groups 3 and 4 join.",
    )
