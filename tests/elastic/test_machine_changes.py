"""How a running membership changes: joins, losses, scaling and broken connections."""

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
    GroupReady,
    MarkGroup,
    RunPhase,
    SetRunPhase,
    StopGroup,
    WantedChanged,
)
from tests.elastic.driver import Driver, launched, next_attempt, removed, training, trains

pytestmark = pytest.mark.pure

BUILT = "Its workers have built their shards."
GONE = "Its node is gone."
AGAIN = "Every group that held the model states is lost, so the run begins again."


def scaled(driver: Driver, wanted: int) -> list[object]:
    return list(driver.tell(WantedChanged(wanted, f"The user asked for {wanted}.")))


# Joining


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


# Scaling


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


# Broken connections


def test_a_generation_that_breaks_under_living_groups_is_built_again() -> None:
    driver = training(2)
    assert driver.breaks(1, step=4) == []
    assert driver.breaks(0, step=4, error="reset by peer") == [
        AnnounceGeneration(
            2,
            (0, 1),
            "All groups are alive, but their connections broke."
            " Step 4 broke under group 0: reset by peer",
        )
    ]


def test_connections_that_keep_breaking_at_one_step_are_built_again_after_growing_pauses() -> None:
    driver = training(2, back_off_s=1)
    driver.breaks(0, 1, step=4)
    for attempt, (times, pause_s) in enumerate([("once", 1), ("2 times", 2), ("3 times", 4)]):
        assert driver.breaks(0, 1, step=4) == [
            SetRunPhase(
                RunPhase.WAITING,
                f"All groups are alive, but reconnecting them has not helped {times};"
                f" they try again after {pause_s} s. Step 4 broke under group 0: connection closed",
            )
        ]
        assert driver.wait(pause_s - 0.5) == []
        assert [type(d) for d in driver.wait(0.5)] == [AnnounceGeneration]
        assert driver.machine.generation == attempt + 3
    driver.enter(0, 1, step=4)
    assert driver.machine.phase == RunPhase.RUNNING
    assert [type(d) for d in driver.breaks(0, 1, step=5)] == [AnnounceGeneration]


def test_a_silent_member_of_a_broken_generation_is_evicted_with_the_reason() -> None:
    driver = training(3, silence_s=60)
    driver.breaks(0, 2, step=4)
    assert driver.wait(59.5) == []
    reason = "It has not answered for 60 s since generation 1 broke."
    assert driver.wait(0.5) == [
        *removed(1, GroupPhase.LOST, reason),
        *launched(3, f"It replaces group 1: {reason}"),
        AnnounceGeneration(2, (0, 2), f"Group 1 was lost: {reason}"),
    ]
    assert driver.wait(1000) == []


def test_a_group_at_its_first_step_under_a_generation_is_given_longer() -> None:
    driver = training(3, silence_s=60, first_step_s=120)
    driver.tell(GroupLost(2, GONE))
    driver.enter(0, 1, step=4)  # of the second generation; neither has done a step
    driver.breaks(0, step=4)
    assert driver.wait(119.5) == []
    reason = "It has not answered for 120 s since generation 2 broke."
    assert driver.wait(0.5)[:2] == removed(1, GroupPhase.LOST, reason)


def test_groups_that_wait_below_the_minimum_are_not_stopped_over_and_over() -> None:
    driver = training(3, minimum=3, silence_s=60)
    driver.tell(GroupLost(2, GONE))
    driver.breaks(0, 1, step=4)
    assert driver.wait(100) == []
    assert driver.wait(100) == []


# Messages that do not count


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


def test_no_group_is_stopped_twice() -> None:
    driver = training(2, silence_s=1)
    driver.breaks(0, step=1)
    stops = [d.group_id for d in driver.wait(1) if isinstance(d, StopGroup)]
    assert stops == [1]


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
