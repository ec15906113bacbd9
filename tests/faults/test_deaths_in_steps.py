"""Workers and whole groups die in a step, in its second hop or while survivors regroup."""

from __future__ import annotations

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupPhase
from tests.faults.runs import FAILS_AT, GROUPS, SIZE, check_the_run, job, lost_of

pytestmark = pytest.mark.timeout(240)


@pytest.mark.parametrize(
    ("phase", "rank"),
    [
        ("forward", 0),
        ("reduce-scatter", 1),
        ("second hop", 0),
        ("after the second hop", 1),
        ("vote", 0),
    ],
)
def test_a_worker_dies_in_a_step(text: str, phase: str, rank: int) -> None:
    fault = FailAt(group=1, rank=rank, step=FAILS_AT, phase=phase)
    with Miniature(job(text, 18), SIZE, GROUPS, faults=[fault]) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
        survivors = [run.machine.groups[group] for group in (0, 2)]
    assert [group.phase for group in survivors] == [GroupPhase.LEFT] * 2, "they were not restarted"
    assert run.machine.groups[1].phase == GroupPhase.LOST


def test_survivors_of_which_one_has_finished_its_second_hop_and_one_has_not(text: str) -> None:
    faults = [
        FailAt(group=1, rank=0, step=FAILS_AT, phase="vote"),
        FailAt(group=2, rank=0, step=FAILS_AT, phase="longer second hop"),
    ]
    with Miniature(job(text, 18), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 1)
        run.until(lambda: run.course.step == FAILS_AT + 1, "a group that commits the step")
        run.until(lambda: run.groups[2].breaks, "the end of group 2's second hop")
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
        broke = {number: run.groups[number].breaks[0] for number in (0, 2)}
    assert "all-reduce of the gradient broke" in broke[2].error
    assert {number: (event.generation, event.step) for number, event in broke.items()} == {
        0: (1, FAILS_AT + 1),  # it had committed the step
        2: (1, FAILS_AT),
    }
    healed = run.steps[FAILS_AT + 1]
    assert healed.num_groups == 1, "group 2 computes again when it has caught up"
    assert [run.machine.groups[group].phase for group in (0, 2)] == [GroupPhase.LEFT] * 2


def test_a_survivor_one_step_behind_goes_on_from_its_own_states_if_its_source_dies(
    text: str,
) -> None:
    faults = [
        FailAt(group=1, rank=0, step=FAILS_AT, phase="vote"),
        FailAt(group=2, rank=0, step=FAILS_AT, phase="longer second hop"),
        # One of its two workers has part of the copy then, the other one may have all of its own.
        FailAt(group=0, rank=0, step=FAILS_AT + 1, phase="copy out"),
    ]
    with Miniature(job(text, 18), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 1)
        run.until(lambda: run.course.step == FAILS_AT + 1, "a group that commits the step")
        run.until(lambda: run.groups[2].breaks, "the end of group 2's second hop")
        run.train_until(lambda: 0 in lost_of(run), "the loss of the source")
        run.train_with(2, 3, 4)
        run.finish()
        check_the_run(run, redone=range(FAILS_AT, FAILS_AT + 1))
        broke = run.groups[2].breaks
    assert lost_of(run) == [0, 1]
    assert run.machine.groups[2].phase == GroupPhase.LEFT, "it was not restarted"
    assert all(event.has_state for event in broke)


@pytest.mark.parametrize("phase", ["regroup", "assembling", "after regrouping"])
def test_another_group_dies_while_the_survivors_regroup(text: str, phase: str) -> None:
    faults = [
        FailAt(group=1, rank=1, step=FAILS_AT, phase="forward"),
        FailAt(group=2, rank=0, step=FAILS_AT, phase=phase),
    ]
    with Miniature(job(text, 18), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 3, 4)
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [1, 2]


@pytest.mark.parametrize(
    ("groups_per_node", "phase"),
    [(2, "second hop"), (2, "reading"), (8, "second hop"), (8, "reading"), (8, "vote")],
)
def test_a_worker_dies_in_a_second_hop_by_node(text: str, groups_per_node: int, phase: str) -> None:
    """Four groups share memory on two nodes, and when one is gone no more; or on one node."""
    fault = FailAt(group=2, rank=0, step=FAILS_AT, phase=phase)
    spec = job(text, 18, 1)
    with Miniature(spec, 1, 4, faults=[fault], groups_per_node=groups_per_node) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 1, 3, 4)
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [2]


def whole_group(group: int, step: int, phase: str) -> list[FailAt]:
    return [FailAt(group, rank, step, phase) for rank in range(SIZE)]


def test_whole_groups_die_in_the_second_hop_assembling_and_copying(text: str) -> None:
    faults = [
        *whole_group(1, FAILS_AT, "second hop"),
        *whole_group(2, FAILS_AT, "assembling"),
        *whole_group(3, -1, "copy in"),
    ]
    with Miniature(job(text, 26), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 2)
        run.until(lambda: {1, 2}.isdisjoint(run.members), "the loss of groups 1 and 2")
        run.until(lambda: 3 in run.waiting or 3 in lost_of(run), "group 3")
        run.train_until(lambda: 3 in lost_of(run), "the loss of group 3")
        run.train_with(0, 4, 5)
        run.finish()
        check_the_run(run)
        assert lost_of(run) == [1, 2, 3]
        # Group 3 died in its copy: it never had a step of its own.
        assert [run.groups[group].entered for group in (1, 2, 3)] == [1, 1, 0]


def test_several_groups_die_in_one_step_and_one_is_enough(text: str) -> None:
    faults = [
        *whole_group(0, FAILS_AT, "reduce-scatter"),
        FailAt(group=2, rank=1, step=FAILS_AT, phase="forward"),
    ]
    with Miniature(job(text, 26), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(1, 3, 4)
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [0, 2]
