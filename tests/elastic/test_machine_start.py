"""How a run starts: who is launched, how long the first wait, and what happens to failed starts."""

from __future__ import annotations

import pytest

from mics_core.elastic.events import (
    AnnounceGeneration,
    Decision,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    LaunchGroup,
    MarkGroup,
    RunPhase,
    SetRunPhase,
    StartRequested,
    Tick,
    WantedChanged,
)
from tests.elastic.driver import BUILT, Driver, launched, next_attempt, removed, training, trains

pytestmark = pytest.mark.pure


def test_a_run_begins_by_launching_all_wanted_groups() -> None:
    assert Driver(2, minimum=1).start() == [
        SetRunPhase(RunPhase.PENDING, "Waiting for 2 partition groups to start; 1 must be ready."),
        *launched(0, "The job wants 2 partition groups.", begins_run=True),
        *launched(1, "The job wants 2 partition groups.", begins_run=True),
    ]


def test_nothing_is_launched_before_the_run_is_asked_to_start() -> None:
    driver = Driver(2)
    assert driver.wait(100) == []
    assert driver.tell(WantedChanged(3, "An early request.")) == []
    assert sum(isinstance(decision, LaunchGroup) for decision in driver.start()) == 3


def test_training_begins_as_soon_as_all_wanted_groups_are_ready() -> None:
    driver = Driver(2)
    driver.start()
    driver.tell(GroupPlaced(0))
    assert driver.tell(GroupPlaced(1)) == [
        MarkGroup(1, GroupPhase.STARTING, "Nodes were found for it.")
    ]
    assert driver.tell(GroupReady(1)) == [MarkGroup(1, GroupPhase.READY, BUILT)]
    assert driver.tell(GroupReady(0)) == [
        MarkGroup(0, GroupPhase.READY, BUILT),
        AnnounceGeneration(1, (0, 1), "Training begins with groups 0 and 1.", begins_run=True),
    ]
    assert driver.enter(1, 0) == [
        MarkGroup(1, GroupPhase.MEMBER, "It trains since step 0 (generation 1)."),
        SetRunPhase(RunPhase.RUNNING, "Training with 2 partition groups."),
        MarkGroup(0, GroupPhase.MEMBER, "It trains since step 0 (generation 1)."),
    ]


def test_ready_groups_do_not_wait_for_those_that_no_node_was_found_for() -> None:
    driver = Driver(4, minimum=2)
    driver.start()
    assert driver.ready(2) == [MarkGroup(2, GroupPhase.READY, BUILT)]
    assert driver.ready(0)[-1] == AnnounceGeneration(
        1, (0, 2), "Training begins with groups 0 and 2.", begins_run=True
    )


def test_ready_groups_begin_when_the_one_that_they_wait_for_is_lost() -> None:
    driver = Driver(2, minimum=1)
    driver.start()
    driver.tell(GroupPlaced(1))
    assert driver.ready(0) == [MarkGroup(0, GroupPhase.READY, BUILT)]
    decisions = driver.tell(GroupLost(1, "Its node is gone."))
    assert (
        AnnounceGeneration(1, (0,), "Training begins with group 0.", begins_run=True) in decisions
    )


def test_the_first_ready_groups_wait_for_the_others_only_so_long() -> None:
    driver = Driver(4, minimum=2, start_grace_s=20)
    driver.start()
    driver.tell(GroupPlaced(3))
    assert driver.ready(2) == [MarkGroup(2, GroupPhase.READY, BUILT)]
    assert driver.wait(19) == []
    assert driver.ready(0) == [MarkGroup(0, GroupPhase.READY, BUILT)]
    assert driver.wait(1) == [
        AnnounceGeneration(1, (0, 2), "Training begins with groups 0 and 2.", begins_run=True)
    ]


def test_the_grace_of_a_group_that_was_lost_does_not_count_for_the_next() -> None:
    driver = Driver(2, minimum=1, start_grace_s=20)
    driver.start()
    driver.tell(GroupPlaced(1))
    driver.ready(0)
    driver.wait(19)
    driver.tell(GroupLost(0, "Its node is gone."))
    driver.wait(10)  # the replacement is launched
    driver.tell(GroupPlaced(2))
    assert driver.ready(1) == [MarkGroup(1, GroupPhase.READY, BUILT)]
    assert driver.wait(19) == []
    assert AnnounceGeneration(
        1, (1,), "Training begins with group 1.", begins_run=True
    ) in driver.wait(1)


def test_fewer_groups_than_the_minimum_do_not_begin_whatever_the_time() -> None:
    driver = Driver(3, minimum=2)
    assert driver.start()[0] == SetRunPhase(
        RunPhase.PENDING, "Waiting for 3 partition groups to start; 2 must be ready."
    )
    driver.ready(0)
    assert driver.wait(10_000) == []
    assert driver.ready(1)[-1] == AnnounceGeneration(
        1, (0, 1), "Training begins with groups 0 and 1.", begins_run=True
    )


def test_a_group_lost_before_its_first_step_still_counts_as_a_start() -> None:
    driver = Driver(1)
    driver.start()
    driver.ready(0)
    assert driver.machine.members == (0,)
    assert driver.tell(GroupLost(0, "Its node is gone.")) == [
        *removed(0, GroupPhase.LOST, "Its node is gone."),
        SetRunPhase(
            RunPhase.PENDING,
            "Attempt 1 of 3 to start failed; the next begins after 1 s."
            " The first error: Its node is gone.",
        ),
    ]
    assert driver.wait(1) == launched(1, "It replaces group 0: Its node is gone.", begins_run=True)
    assert driver.ready(1)[-1] == AnnounceGeneration(
        2, (1,), "Training begins again with group 1.", begins_run=True
    )


def test_failed_starts_are_repeated_with_growing_pauses_until_the_job_is_given_up() -> None:
    driver = Driver(1, max_failed_starts=3, back_off_s=2)
    driver.start()
    assert driver.tell(GroupLost(0, "Its node is gone.")) == [
        *removed(0, GroupPhase.LOST, "Its node is gone."),
        SetRunPhase(
            RunPhase.PENDING,
            "Attempt 1 of 3 to start failed; the next begins after 2 s."
            " The first error: Its node is gone.",
        ),
    ]
    assert driver.wait(1.9) == []
    assert driver.wait(0.1) == launched(
        1, "It replaces group 0: Its node is gone.", begins_run=True
    )
    driver.tell(GroupLost(1, "No module named nowhere.", own_error=True))
    assert driver.machine.reason == (
        "Attempt 2 of 3 to start failed; the next begins after 4 s."
        " The first error: No module named nowhere."
    )
    assert driver.wait(3.9) == []
    driver.wait(0.1)
    final = "Groups could not start, 3 times in a row. The first error: No module named nowhere."
    assert driver.tell(GroupLost(2, "No module named elsewhere.", own_error=True)) == [
        *removed(2, GroupPhase.LOST, "No module named elsewhere."),
        SetRunPhase(RunPhase.FAILED, final),
    ]


def test_groups_that_fail_side_by_side_are_one_attempt() -> None:
    driver = Driver(4, max_failed_starts=2)
    driver.start()
    for group_id in range(4):
        driver.tell(GroupPlaced(group_id))
        driver.tell(GroupLost(group_id, "Its node is gone."))
    assert driver.machine.phase == RunPhase.PENDING
    assert [d.group_id for d in driver.wait(1) if isinstance(d, LaunchGroup)] == [4, 5, 6, 7]


def test_the_last_attempt_lasts_as_long_as_one_of_its_groups_is_starting() -> None:
    driver = Driver(2, max_failed_starts=1)
    driver.start()
    driver.tell(GroupPlaced(1))
    driver.tell(GroupLost(0, "Its node is gone."))
    assert driver.machine.phase == RunPhase.PENDING
    driver.tell(GroupLost(1, "Its node is gone too."))
    assert driver.machine.phase == RunPhase.FAILED
    assert driver.machine.reason == ("Groups could not start. The first error: Its node is gone.")


def test_giving_up_stops_the_groups_that_were_ready() -> None:
    driver = Driver(2, minimum=2, max_failed_starts=1)
    driver.start()
    driver.ready(0)
    reason = "Groups could not start. The first error: No memory."
    assert driver.tell(GroupLost(1, "No memory.", own_error=True)) == [
        *removed(1, GroupPhase.LOST, "No memory."),
        *removed(0, GroupPhase.LEFT, reason),
        SetRunPhase(RunPhase.FAILED, reason),
    ]


@pytest.mark.long
def test_failed_starts_never_end_a_run_that_trains() -> None:
    driver = training(1, max_failed_starts=3, back_off_s=1, max_back_off_s=60)
    driver.tell(WantedChanged(2, "More nodes."))
    launches = []
    for failed in range(1100):  # 2.0 ** 1100 is no float
        decisions = driver.tell(GroupLost(failed + 1, "No memory.", own_error=True))
        pause_s = min(2.0 ** min(failed, 10), 60)
        assert decisions == [
            *removed(failed + 1, GroupPhase.LOST, "No memory."),
            next_attempt(1, failed + 1, pause_s, "No memory."),
        ]
        assert driver.wait(pause_s - 0.5) == []
        launches.append(driver.wait(0.5))
    reason = "It replaces group 1100: No memory."
    assert launches[-1] == [*launched(1101, reason), trains(1)]


def test_survivors_that_regroup_do_not_end_the_pauses_of_a_joiner_that_keeps_failing() -> None:
    driver = training(1, back_off_s=1)
    driver.tell(WantedChanged(2, "More nodes."))
    for joiner, pause_s in [(1, 1), (2, 2), (3, 4)]:
        driver.ready(joiner)
        driver.tell(GroupLost(joiner, "No memory.", own_error=True))
        driver.enter(0, step=joiner)
        assert driver.wait(pause_s - 0.5) == []
        reason = f"It replaces group {joiner}: No memory."
        assert driver.wait(0.5) == [*launched(joiner + 1, reason), trains(1)]


def test_a_newcomer_that_trains_ends_the_row_of_failed_starts() -> None:
    driver = training(1, back_off_s=1)
    driver.tell(WantedChanged(2, "More nodes."))
    driver.tell(GroupLost(1, "No memory."))
    driver.wait(1)
    driver.ready(2)
    driver.enter(0, 2, step=3)
    driver.tell(WantedChanged(3, "More nodes."))
    driver.tell(GroupLost(3, "No memory."))
    assert driver.wait(1) == [*launched(4, "It replaces group 3: No memory."), trains(2)]


# Losses soon after the entry


def replaced(driver: Driver, error: str) -> list[Decision]:
    """Let the youngest group join those that train, and be lost a second later."""
    youngest = max(driver.machine.groups)
    driver.enter(*driver.machine.members, step=youngest)
    driver.ready(youngest)
    driver.enter(*driver.machine.members, step=youngest)
    driver.wait(1)
    return driver.tell(GroupLost(youngest, error, own_error=True, step=youngest))


def test_groups_that_are_lost_soon_after_their_entry_are_replaced_after_growing_pauses() -> None:
    driver = training(1, back_off_s=1, settles_s=10)
    driver.tell(WantedChanged(2, "More nodes."))
    # It might be any loss.
    assert driver.machine.phase == RunPhase.RUNNING
    assert launched(2, "It replaces group 1: No memory.")[0] in replaced(driver, "No memory.")
    for times, pause_s in [(2, 1), (3, 2), (4, 4)]:
        decisions = replaced(driver, "Another error.")
        assert decisions[-1] == trains(
            2,
            f" {times} groups in a row were lost within 10 s of their entry; the next is launched"
            f" after {pause_s} s. The first error: No memory.",
        )
        driver.enter(0, step=times)
        assert "The first error: No memory." in driver.machine.reason
        assert driver.wait(pause_s - 0.5) == []
        launch = launched(times + 1, f"It replaces group {times}: Another error.")
        assert driver.wait(0.5) == [*launch, trains(1)]


def test_a_group_that_lasts_ends_the_row_of_early_losses() -> None:
    driver = training(1, settles_s=10)
    driver.tell(WantedChanged(2, "More nodes."))
    for group_id in (1, 3, 5):
        launch = launched(group_id + 1, f"It replaces group {group_id}: No memory.")
        assert launch[0] in replaced(driver, "No memory.")
        lasting = group_id + 1
        driver.wait(1)
        driver.enter(0, step=lasting)
        driver.ready(lasting)
        driver.enter(0, lasting, step=lasting)
        driver.wait(10)
        launch = launched(lasting + 1, f"It replaces group {lasting}: No memory.")
        assert launch[0] in driver.tell(GroupLost(lasting, "No memory."))


def test_groups_that_are_lost_together_soon_after_the_start_are_one_loss() -> None:
    driver = training(4)
    for group_id in (1, 2, 3):
        decisions = driver.tell(GroupLost(group_id, "Its node is gone."))
        assert launched(group_id + 3, f"It replaces group {group_id}: Its node is gone.")[0] in (
            decisions
        )


def test_a_run_whose_only_group_keeps_dying_at_its_first_step_is_backed_off() -> None:
    driver = training(1, back_off_s=1)
    driver.tell(GroupLost(0, "Killed."))
    for group_id, pause_s in [(1, 1), (2, 2)]:
        driver.ready(group_id)
        driver.enter(group_id)
        driver.tell(GroupLost(group_id, "Killed."))
        assert driver.wait(pause_s - 0.5) == []
        assert isinstance(driver.wait(0.5)[0], LaunchGroup)


def test_asking_to_start_twice_starts_once() -> None:
    driver = Driver(2)
    driver.start()
    assert driver.tell(StartRequested()) == []
    assert driver.tell(Tick()) == []
