"""Groups are lost: who trains on, who replaces them, and what is left of the model states."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    GroupBroken,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    MarkGroup,
    RunPhase,
    SetRunPhase,
)
from tests.elastic.driver import (
    BUILT,
    GONE,
    launched,
    next_attempt,
    removed,
    scaled,
    training,
    trains,
)

pytestmark = pytest.mark.pure

AGAIN = "Every group that held the model states is lost, so the run begins again."


# Losing


def test_survivors_of_a_loss_go_on_at_once_and_a_replacement_is_asked_for_at_once() -> None:
    driver = training(3)
    assert driver.tell(GroupLost(1, GONE)) == [
        *removed(1, GroupPhase.LOST, GONE),
        *launched(3, "It replaces group 1: Its node is gone."),
        AnnounceGeneration(2, (0, 2), "Group 1 was lost: Its node is gone."),
    ]
    assert driver.enter(0, 2, step=5) == [
        SetRunPhase(RunPhase.RUNNING, "Training with 2 partition groups.")
    ]
    assert driver.ready(3)[-1] == AnnounceGeneration(3, (0, 2, 3), "Group 3 joins.")


def test_two_losses_at_once_are_two_generations_and_two_replacements() -> None:
    driver = training(4)
    driver.tell(GroupLost(0, GONE))
    assert driver.tell(GroupLost(3, "It was killed.")) == [
        *removed(3, GroupPhase.LOST, "It was killed."),
        *launched(5, "It replaces group 3: It was killed."),
        AnnounceGeneration(3, (1, 2), "Group 3 was lost: It was killed."),
    ]


def test_losses_below_the_minimum_wait_and_say_so() -> None:
    driver = training(2, minimum=2)
    assert driver.tell(GroupLost(0, GONE)) == [
        *removed(0, GroupPhase.LOST, GONE),
        *launched(2, "It replaces group 0: Its node is gone."),
        SetRunPhase(
            RunPhase.WAITING,
            "1 partition group is ready, 2 needed. Group 0 was lost: Its node is gone.",
        ),
    ]
    assert driver.breaks(1, step=4) == []
    assert driver.wait(10_000) == []
    assert driver.ready(2) == [
        MarkGroup(2, GroupPhase.READY, BUILT),
        AnnounceGeneration(2, (1, 2), "Group 0 was lost: Its node is gone. Group 2 joins."),
    ]


@pytest.mark.parametrize("is_placed", [False, True])
def test_a_joiner_lost_before_it_is_ready_does_not_touch_the_members(is_placed: bool) -> None:
    driver = training(2)
    scaled(driver, 3)
    if is_placed:
        driver.tell(GroupPlaced(2))
    assert driver.tell(GroupLost(2, GONE)) == [
        *removed(2, GroupPhase.LOST, GONE),
        next_attempt(2, 1, 1, GONE),
    ]
    assert driver.wait(1) == [
        *launched(3, "It replaces group 2: Its node is gone."),
        trains(2),
    ]


def test_a_joiner_lost_after_its_announcement_is_taken_out_again() -> None:
    driver = training(2)
    scaled(driver, 3)
    driver.ready(2)
    assert driver.tell(GroupLost(2, GONE)) == [
        *removed(2, GroupPhase.LOST, GONE),
        AnnounceGeneration(3, (0, 1), "Group 2 was lost: Its node is gone."),
        next_attempt(2, 1, 1, GONE),
    ]


def test_a_ready_group_that_waits_for_the_minimum_may_be_lost() -> None:
    driver = training(3, minimum=3)
    driver.tell(GroupLost(1, GONE))
    driver.tell(GroupLost(2, GONE))
    driver.ready(3)
    decisions = driver.tell(GroupLost(3, "It was killed."))
    assert decisions[:2] == removed(3, GroupPhase.LOST, "It was killed.")
    waits = driver.machine.reason
    assert waits == (
        "1 partition group is ready, 3 needed."
        " Group 1 was lost: Its node is gone. Group 2 was lost: Its node is gone."
        " Attempt 1 to start another failed; the next begins after 1 s."
        " The first error: It was killed."
    )
    assert driver.wait(1) == [
        *launched(5, "It replaces group 3: It was killed."),
        SetRunPhase(RunPhase.WAITING, waits[: waits.index(" Attempt")]),
    ]


def test_a_group_that_ends_without_being_asked_is_lost() -> None:
    driver = training(2)
    reason = "It ended without being asked to."
    assert driver.tell(GroupEnded(1, finished=False)) == [
        *removed(1, GroupPhase.LOST, reason),
        *launched(2, f"It replaces group 1: {reason}"),
        AnnounceGeneration(2, (0,), f"Group 1 was lost: {reason}"),
    ]


# Losing the state


def test_the_run_begins_again_when_the_last_holder_of_the_state_is_lost() -> None:
    driver = training(1)
    assert driver.tell(GroupLost(0, GONE)) == [
        *removed(0, GroupPhase.LOST, GONE),
        SetRunPhase(RunPhase.WAITING, AGAIN),
        *launched(1, "It replaces group 0: Its node is gone.", begins_run=True),
    ]
    assert driver.ready(1)[-1] == AnnounceGeneration(
        2, (1,), "Training begins again with group 1.", begins_run=True
    )


def test_groups_that_could_only_have_copied_are_replaced_when_the_run_begins_again() -> None:
    driver = training(2)
    driver.tell(GroupLost(0, GONE))
    driver.enter(1, step=9)
    assert driver.tell(GroupLost(1, GONE)) == [
        *removed(1, GroupPhase.LOST, GONE),
        *removed(2, GroupPhase.LEFT, AGAIN),
        SetRunPhase(RunPhase.WAITING, AGAIN),
        *launched(3, "It replaces group 1: Its node is gone.", begins_run=True),
        *launched(4, AGAIN, begins_run=True),
    ]
    driver.tell(GroupPlaced(3))
    assert driver.ready(4) == [MarkGroup(4, GroupPhase.READY, BUILT)]
    assert driver.ready(3)[-1] == AnnounceGeneration(
        3, (3, 4), "Training begins again with groups 3 and 4.", begins_run=True
    )


def test_an_announced_joiner_is_asked_whether_it_had_copied_before_the_run_begins_again() -> None:
    driver = training(1)
    scaled(driver, 2)
    driver.ready(1)
    assert driver.tell(GroupLost(0, GONE)) == [
        *removed(0, GroupPhase.LOST, GONE),
        *launched(2, "It replaces group 0: Its node is gone."),
        AnnounceGeneration(3, (1,), "Group 0 was lost: Its node is gone."),
    ]
    # It had copied, and its report of that comes late.
    assert driver.tell(GroupEntered(1, 2, 5))[0] == MarkGroup(
        1, GroupPhase.MEMBER, "It trains since step 5 (generation 2)."
    )
    assert driver.machine.phase == RunPhase.RUNNING


def test_a_joiner_that_had_not_copied_is_useless_without_a_holder() -> None:
    driver = training(1)
    scaled(driver, 2)
    driver.ready(1)
    driver.tell(GroupLost(0, GONE))
    closed = GroupBroken(1, 2, 0, "closed", holds_state=False)
    assert driver.tell(closed) == []  # of the generation before: no answer
    nobody = GroupBroken(1, 3, 0, "No member holds the model states.", holds_state=False)
    assert driver.tell(nobody) == [
        *removed(1, GroupPhase.LEFT, AGAIN),
        *removed(2, GroupPhase.LEFT, AGAIN),
        SetRunPhase(RunPhase.WAITING, AGAIN),
        *launched(3, AGAIN, begins_run=True),
        *launched(4, AGAIN, begins_run=True),
    ]


def test_a_member_whose_copy_broke_half_way_holds_no_state() -> None:
    driver = training(2)
    driver.breaks(0, 1, step=4)
    driver.tell(GroupBroken(1, 2, 4, "closed", holds_state=False))
    decisions = driver.tell(GroupLost(0, GONE))
    assert MarkGroup(1, GroupPhase.LEFT, AGAIN) in decisions
    assert SetRunPhase(RunPhase.WAITING, AGAIN) in decisions


def test_the_last_holder_s_own_error_ends_the_run() -> None:
    driver = training(2)
    driver.tell(GroupLost(1, "Rank 0 failed at step 3: division by zero", own_error=True))
    assert driver.machine.phase == RunPhase.RUNNING
    reason = "No group is left, and the last one failed: Rank 1 failed at step 3: division by zero"
    error = "Rank 1 failed at step 3: division by zero"
    assert driver.tell(GroupLost(0, error, own_error=True)) == [
        *removed(0, GroupPhase.LOST, error),
        *removed(2, GroupPhase.LEFT, reason),
        SetRunPhase(RunPhase.FAILED, reason),
    ]


def test_a_leaving_holder_is_called_back_when_no_other_is_left() -> None:
    driver = training(2)
    scaled(driver, 1)
    assert driver.machine.members == (0,)
    back = "It is called back: no other group holds the model states."
    assert driver.tell(GroupLost(0, GONE)) == [
        *removed(0, GroupPhase.LOST, GONE),
        MarkGroup(1, GroupPhase.MEMBER, back),
        AnnounceGeneration(3, (1,), f"Group 0 was lost: Its node is gone. Group 1 stays: {back}"),
    ]
    # It had left already when it was called: now the state is lost indeed.
    assert SetRunPhase(RunPhase.WAITING, AGAIN) in driver.tell(GroupEnded(1, finished=False))


def test_a_newcomer_that_has_copied_all_holds_the_states_though_it_never_trained() -> None:
    driver = training(1)
    scaled(driver, 2)
    driver.ready(1)
    driver.enter(0, step=4)
    driver.tell(GroupBroken(1, 2, 5, "connection closed", holds_state=True))
    told = driver.tell(GroupLost(0, GONE))
    assert [d.groups for d in told if isinstance(d, AnnounceGeneration)] == [(1,)]
    driver = training(1)
    scaled(driver, 2)
    driver.ready(1)
    driver.enter(0, step=4)
    driver.tell(GroupBroken(1, 2, 5, "connection closed", holds_state=False))
    told = driver.tell(GroupLost(0, GONE))
    assert not [d for d in told if isinstance(d, AnnounceGeneration)]
