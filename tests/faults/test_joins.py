"""Either end of a copy dies or is stopped, or a newcomer before it, and the others train on."""

from __future__ import annotations

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupPhase
from tests.faults.runs import SIZE, check_the_run, job, lost_of

pytestmark = pytest.mark.timeout(240)


def test_groups_that_come_at_the_same_moment_join_together(text: str) -> None:
    with Miniature(job(text, 26), SIZE, 2) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(4)
        run.train_with(0, 1, 2, 3)
        run.finish()
        check_the_run(run)
    assert [record.groups for record in run.course.generations[:2]] == [[0, 1], [0, 1, 2, 3]]
    assert max(step.num_groups for step in run.steps) == 4


@pytest.mark.parametrize(
    ("group", "phase", "members"),
    [(2, "copy in", [0, 1, 3]), (0, "copy out", [1, 2, 3])],
    ids=["the newcomer", "a source"],
)
def test_either_end_of_a_copy_dies(text: str, group: int, phase: str, members: list[int]) -> None:
    fault = FailAt(group=group, rank=1, step=-1, phase=phase)
    with Miniature(job(text, 26), SIZE, 2, faults=[fault]) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(3)
        run.until(lambda: run.machine.groups[2].phase == GroupPhase.READY, "a third group")
        run.hold_at(6)  # the copy begins
        run.train_with(*members)
        run.finish()
        check_the_run(run)


@pytest.mark.parametrize(
    ("group", "phase"), [(2, "copy in"), (0, "copy out")], ids=["the newcomer", "a source"]
)
def test_either_end_of_a_copy_is_stopped(text: str, group: int, phase: str) -> None:
    fault = FailAt(group, rank=1, step=-1, phase=phase, stops=True)
    limits = {"silence_s": 2.0, "first_step_s": 4.0, "finds_missing": True}
    with Miniature(job(text, 60), SIZE, 2, faults=[fault], **limits) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(3)
        run.until(lambda: run.machine.groups[2].phase == GroupPhase.READY, "a third group")
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [group]


def test_a_newcomer_is_stopped_at_the_door(text: str) -> None:
    faults = [FailAt(group=2, rank=1, step=-1, phase="assembling", stops=True)]
    with Miniature(job(text, 26), SIZE, 2, faults=faults, silence_s=2.0, finds_missing=True) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(3)
        run.until(lambda: run.machine.groups[2].phase == GroupPhase.READY, "a third group")
        run.go_on()
        run.until(lambda: 2 in lost_of(run), "its eviction")
        run.finish()
        check_the_run(run)
        assert [group.stopped for number, group in run.groups.items() if number < 2] == [False] * 2
    assert "It does not come to the next generation: group " in run.machine.groups[2].reason
