"""How a run ends: finished, cancelled in each phase, failed; once, and for good."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    CancelRequested,
    GroupBroken,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupReady,
    MarkGroup,
    PauseRequested,
    RunPhase,
    SetRunPhase,
    StartRequested,
    Tick,
    WantedChanged,
)
from tests.elastic.driver import BUILT, Driver, removed, training

pytestmark = pytest.mark.pure

DONE = "All steps are done."
STOP = "The user cancelled it."


def finish(driver: Driver, group_id: int) -> list[object]:
    return list(driver.tell(GroupEnded(group_id, finished=True)))


# Finishing


def test_a_run_is_finished_when_the_last_group_has_ended() -> None:
    driver = training(2)
    assert finish(driver, 1) == [MarkGroup(1, GroupPhase.LEFT, DONE)]
    assert finish(driver, 0) == [
        MarkGroup(0, GroupPhase.LEFT, DONE),
        SetRunPhase(RunPhase.FINISHED, DONE),
    ]


@pytest.mark.parametrize("is_announced", [False, True])
def test_finishing_stops_the_groups_that_are_still_on_their_way(is_announced: bool) -> None:
    driver = training(1)
    driver.tell(WantedChanged(2, "More nodes."))
    if is_announced:
        driver.ready(1)
    assert finish(driver, 0) == [
        MarkGroup(0, GroupPhase.LEFT, DONE),
        *removed(1, GroupPhase.LEFT, DONE),
        SetRunPhase(RunPhase.FINISHED, DONE),
    ]


def test_a_group_that_dies_while_the_others_finish_is_not_replaced() -> None:
    driver = training(2)
    finish(driver, 0)
    assert driver.tell(GroupLost(1, "Its node is gone.")) == [
        *removed(1, GroupPhase.LOST, "Its node is gone."),
        SetRunPhase(RunPhase.FINISHED, DONE),
    ]


def test_a_member_under_which_the_last_step_broke_is_told_to_leave() -> None:
    driver = training(2)
    finish(driver, 0)
    assert driver.tell(GroupBroken(1, 1, 9, "closed")) == [AnnounceGeneration(2, (), DONE)]
    assert driver.tell(GroupEnded(1, finished=False))[-1] == SetRunPhase(RunPhase.FINISHED, DONE)


def test_a_member_that_broke_before_the_others_said_that_they_finished_is_told_too() -> None:
    driver = training(3)
    driver.tell(GroupLost(2, "Its node is gone."))
    driver.tell(GroupBroken(1, 1, 9, "closed"))
    assert AnnounceGeneration(3, (), DONE) in finish(driver, 0)


def test_a_leaving_group_may_be_the_one_that_finishes() -> None:
    driver = training(2)
    driver.tell(WantedChanged(1, "Fewer nodes."))
    assert finish(driver, 1) == [
        MarkGroup(1, GroupPhase.LEFT, DONE),
        # Group 0 has not entered generation 2, and who could be its peer there is gone.
        AnnounceGeneration(3, (), DONE),
    ]
    assert finish(driver, 0)[-1] == SetRunPhase(RunPhase.FINISHED, DONE)


def test_a_member_that_hangs_at_the_end_is_evicted() -> None:
    driver = training(3, silence_s=60)
    finish(driver, 0)
    driver.tell(GroupBroken(1, 1, 9, "timed out"))
    driver.tell(GroupEnded(1, finished=False))
    reason = "It has not answered for 60 s since generation 1 broke."
    assert driver.wait(60) == [
        *removed(2, GroupPhase.LOST, reason),
        SetRunPhase(RunPhase.FINISHED, DONE),
    ]


# Pausing


def test_members_of_a_paused_run_write_a_checkpoint_before_they_leave() -> None:
    driver = training(2)
    driver.tell(WantedChanged(3, "More nodes."))
    assert driver.tell(PauseRequested(STOP)) == [
        MarkGroup(0, GroupPhase.LEAVING, STOP),
        MarkGroup(1, GroupPhase.LEAVING, STOP),
        *removed(2, GroupPhase.LEFT, STOP),
        AnnounceGeneration(2, (), STOP, writes_checkpoint=True),
    ]
    assert driver.tell(CancelRequested("Too late.")) == []
    driver.tell(GroupEnded(0, finished=False))
    assert driver.tell(GroupEnded(1, finished=False)) == [
        MarkGroup(1, GroupPhase.LEFT, STOP),
        SetRunPhase(RunPhase.PAUSED, STOP),
    ]
    assert driver.tell(WantedChanged(4, "More nodes.")) == []


def test_a_run_that_has_not_begun_is_paused_at_once() -> None:
    driver = Driver(2, minimum=2)
    driver.start()
    assert driver.tell(PauseRequested(STOP))[-1] == SetRunPhase(RunPhase.PAUSED, STOP)


def test_a_pause_at_the_last_step_leaves_the_run_finished() -> None:
    driver = training(1)
    driver.tell(PauseRequested(STOP))
    assert finish(driver, 0)[-1] == SetRunPhase(RunPhase.FINISHED, DONE)


def test_a_new_minimum_holds_from_the_next_change_on() -> None:
    driver = training(2)
    driver.tell(WantedChanged(2, "Both are needed.", minimum=2))
    driver.tell(GroupLost(1, "Its node is gone."))
    assert driver.machine.phase == RunPhase.WAITING
    driver.tell(WantedChanged(2, "One is enough.", minimum=1))
    assert driver.machine.members == (0,)


def test_members_train_on_while_a_raised_minimum_has_not_been_reached() -> None:
    driver = training(1)
    driver.tell(WantedChanged(3, "All three are needed.", minimum=3))
    assert driver.ready(1)[-1] == MarkGroup(1, GroupPhase.READY, BUILT)
    assert driver.machine.phase == RunPhase.RUNNING
    assert driver.machine.members == (0,)
    driver.ready(2)
    assert driver.machine.members == (0, 1, 2)


# Cancelling


def test_a_run_that_was_not_started_is_cancelled_at_once() -> None:
    assert Driver(2).tell(CancelRequested(STOP)) == [SetRunPhase(RunPhase.CANCELLED, STOP)]


def test_cancelling_before_the_first_generation_stops_everybody() -> None:
    driver = Driver(2, minimum=2)
    driver.start()
    driver.ready(1)
    assert driver.tell(CancelRequested(STOP)) == [
        *removed(0, GroupPhase.LEFT, STOP),
        *removed(1, GroupPhase.LEFT, STOP),
        SetRunPhase(RunPhase.CANCELLED, STOP),
    ]


def test_cancelling_an_announced_start_lets_the_groups_leave() -> None:
    driver = Driver(1)
    driver.start()
    driver.ready(0)
    assert driver.tell(CancelRequested(STOP)) == [
        MarkGroup(0, GroupPhase.LEAVING, STOP),
        AnnounceGeneration(2, (), STOP),
    ]


def test_members_leave_a_cancelled_run_at_a_step_boundary() -> None:
    driver = training(2)
    driver.tell(WantedChanged(3, "More nodes."))
    assert driver.tell(CancelRequested(STOP)) == [
        MarkGroup(0, GroupPhase.LEAVING, STOP),
        MarkGroup(1, GroupPhase.LEAVING, STOP),
        *removed(2, GroupPhase.LEFT, STOP),
        AnnounceGeneration(2, (), STOP),
    ]
    assert driver.tell(GroupEnded(0, finished=False)) == [MarkGroup(0, GroupPhase.LEFT, STOP)]
    assert driver.tell(GroupEnded(1, finished=False)) == [
        MarkGroup(1, GroupPhase.LEFT, STOP),
        SetRunPhase(RunPhase.CANCELLED, STOP),
    ]


def test_cancelling_while_an_announced_joiner_has_not_entered_lets_it_leave_too() -> None:
    driver = training(1)
    driver.tell(WantedChanged(2, "More nodes."))
    driver.ready(1)
    assert driver.tell(CancelRequested(STOP)) == [
        MarkGroup(0, GroupPhase.LEAVING, STOP),
        MarkGroup(1, GroupPhase.LEAVING, STOP),
        AnnounceGeneration(3, (), STOP),
    ]


def test_cancelling_below_the_minimum_reaches_the_survivors() -> None:
    driver = training(2, minimum=2)
    driver.tell(GroupLost(1, "Its node is gone."))
    assert driver.tell(CancelRequested(STOP)) == [
        MarkGroup(0, GroupPhase.LEAVING, STOP),
        *removed(2, GroupPhase.LEFT, STOP),
        AnnounceGeneration(2, (), STOP),
    ]


def test_a_leaving_group_that_hangs_does_not_keep_a_cancelled_run_alive() -> None:
    driver = training(2, silence_s=60)
    driver.tell(CancelRequested(STOP))
    driver.tell(GroupBroken(0, 1, 9, "timed out"))
    driver.tell(GroupEnded(0, finished=False))
    assert driver.wait(60)[-1] == SetRunPhase(RunPhase.CANCELLED, STOP)


def test_the_first_ending_counts() -> None:
    driver = training(2)
    finish(driver, 0)
    assert driver.tell(CancelRequested(STOP)) == []
    assert finish(driver, 1)[-1] == SetRunPhase(RunPhase.FINISHED, DONE)

    driver = training(2)
    driver.tell(CancelRequested(STOP))
    assert driver.tell(CancelRequested("Again.")) == []
    finish(driver, 0)
    assert finish(driver, 1)[-1] == SetRunPhase(RunPhase.CANCELLED, STOP)


def test_a_run_that_begins_again_can_be_cancelled() -> None:
    driver = training(1)
    driver.tell(GroupLost(0, "Its node is gone."))
    driver.ready(1)
    driver.tell(GroupLost(1, "Its node is gone."))
    assert driver.tell(CancelRequested(STOP)) == [SetRunPhase(RunPhase.CANCELLED, STOP)]


# After the end


def test_an_ending_run_does_not_grow() -> None:
    driver = training(2)
    finish(driver, 0)
    assert driver.tell(WantedChanged(8, "More nodes.")) == []
    assert driver.machine.wanted == 2


def test_nothing_happens_after_the_final_phase() -> None:
    driver = training(1)
    finish(driver, 0)
    assert driver.machine.phase == RunPhase.FINISHED
    for event in (
        StartRequested(),
        GroupReady(0),
        GroupEntered(0, 1, 3),
        GroupLost(0, "Its node is gone.", own_error=True),
        GroupEnded(0, finished=True),
        WantedChanged(4, "More nodes."),
        CancelRequested(STOP),
        Tick(),
    ):
        assert driver.tell(event) == [], event
