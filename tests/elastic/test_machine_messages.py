"""Messages that come late, twice or from nobody change nothing."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    GroupBroken,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPlaced,
    GroupReady,
)
from tests.elastic.driver import GONE, Driver, training

pytestmark = pytest.mark.pure


def test_messages_about_groups_that_are_gone_or_unknown_are_ignored() -> None:
    driver = training(2)
    driver.tell(GroupLost(1, GONE))
    for group_id in (1, 77):
        for event in (
            GroupPlaced(group_id),
            GroupReady(group_id),
            GroupEntered(group_id, 1, 3),
            GroupEntered(group_id, 2, 3),
            GroupBroken(group_id, 1, 3, "closed"),
            GroupBroken(group_id, 2, 3, "closed"),
            GroupLost(group_id, GONE, own_error=True),
            GroupEnded(group_id, finished=False),
            GroupEnded(group_id, finished=True),
        ):
            assert driver.tell(event) == [], event


def test_doubled_and_late_messages_change_nothing() -> None:
    driver = training(2)
    for event in (
        GroupPlaced(0),
        GroupReady(1),
        GroupEntered(0, 1, 0),
        GroupEntered(1, 5, 0),
        GroupBroken(1, 5, 0, "of a generation that is not there"),
        GroupBroken(1, 0, 0, "of none"),
    ):
        assert driver.tell(event) == [], event
    driver.breaks(0, 1, step=3)
    assert driver.tell(GroupBroken(0, 1, 3, "closed")) == []  # of the generation before


def test_a_group_that_was_never_announced_cannot_enter() -> None:
    driver = Driver(2)
    driver.start()
    driver.tell(GroupPlaced(1))
    driver.ready(0)
    assert driver.tell(GroupEntered(0, 0, 0)) == []
    assert driver.tell(GroupEntered(0, 1, 0)) == []
