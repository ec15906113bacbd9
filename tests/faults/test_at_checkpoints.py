"""Workers die or stop while a checkpoint is written, and runs go on from what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import RunPhase
from mics_core.spec.folders import CheckpointFolder
from tests.faults.runs import (
    FAILS_AT,
    GROUPS,
    SIZE,
    bitwise,
    check_the_bits,
    check_the_run,
    job,
    lost_of,
)

pytestmark = pytest.mark.timeout(240)


def test_a_checkpoint_that_only_one_survivor_has_begun_is_told_as_failed(
    text: str, tmp_path: Path
) -> None:
    due = FAILS_AT + 1
    faults = [
        FailAt(group=1, rank=0, step=FAILS_AT, phase="vote"),
        FailAt(group=0, rank=0, step=FAILS_AT, phase="longer second hop"),
    ]
    folder = {"directory": str(tmp_path), "interval_steps": due}
    with Miniature(job(text, 30, checkpoint=folder), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(due)
        run.until(lambda: run.course.step == due, "a group that commits the step")
        run.until(lambda: run.groups[0].breaks, "the end of group 0's second hop")
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
        steps = {number: run.groups[number].breaks[0].step for number in (0, 2)}
    assert steps == {0: FAILS_AT, 2: due}
    told = [report.error for report in run.checkpoints if report.step == due]
    assert told == ["Group 0 had not begun it."]
    assert (run.checkpoints[-1].step, run.checkpoints[-1].error) == (30, "")


@pytest.mark.parametrize("phase", ["half a file", "before its record"])
def test_a_worker_dies_while_it_writes_a_checkpoint(text: str, tmp_path: Path, phase: str) -> None:
    # The first one: under load another would still be written, and that of step 10 left out.
    spec = job(text, 30, checkpoint={"directory": str(tmp_path), "interval_steps": 10, "keep": 9})
    fault = FailAt(group=1, rank=0, step=9, phase=phase)
    with Miniature(spec, SIZE, GROUPS, faults=[fault]) as run:
        run.hold_at(12)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
    told = {report.step: report.error for report in run.checkpoints}
    assert "Group 1 went away" in told[10]
    assert told[30] == ""
    assert (tmp_path / "step-00000030" / "mics.json").exists()
    assert not (tmp_path / "step-00000010" / "mics.json").exists()


@pytest.mark.parametrize(
    ("group", "phase"),
    [
        (0, "half a file"),
        (1, "checkpoint"),
        (0, "before it is visible"),
        (0, "after it is visible"),
    ],
)
def test_a_worker_dies_at_the_last_checkpoint_and_those_who_are_left_complete_it(
    text: str, tmp_path: Path, group: int, phase: str
) -> None:
    spec = job(text, 10, checkpoint={"directory": str(tmp_path), "interval_steps": 10})
    fault = FailAt(group=group, rank=0, step=9, phase=phase)
    with Miniature(spec, SIZE, GROUPS, faults=[fault]) as run:
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [group]
    folder = CheckpointFolder(str(tmp_path))
    stored = folder.read(10)
    assert folder.damage_of(stored, [file for part in stored.parts for file in part.files]) == ""
    assert (run.checkpoints[-1].step, run.checkpoints[-1].error) == (10, "")


def test_a_worker_is_stopped_at_the_last_checkpoint_and_its_group_alone_is_lost(
    text: str, tmp_path: Path
) -> None:
    """The other worker of each group waits for the one whose peer does not answer."""
    spec = job(text, 10, checkpoint={"directory": str(tmp_path), "interval_steps": 10})
    fault = FailAt(group=1, rank=0, step=9, phase="checkpoint", stops=True)
    limits = {"silence_s": 2.0, "finds_missing": True}
    with Miniature(spec, SIZE, GROUPS, faults=[fault], **limits) as run:
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [1]
    assert (run.checkpoints[-1].step, run.checkpoints[-1].error) == (10, "")


def test_the_last_checkpoint_waits_for_as_many_groups_as_the_run_needs(
    text: str, tmp_path: Path
) -> None:
    """The one that comes for it has no step to train, and nothing to write."""
    spec = job(text, 10, checkpoint={"directory": str(tmp_path), "interval_steps": 10})
    fault = FailAt(group=1, rank=0, step=9, phase="checkpoint")
    with Miniature(spec, SIZE, GROUPS, minimum=GROUPS, faults=[fault]) as run:
        run.finish()
        assert run.machine.phase == RunPhase.FINISHED
        assert [step.step for step in run.steps] == [*range(10)]
        assert run.machine.members == (0, 2, 3)
    assert len(CheckpointFolder(str(tmp_path)).read(10).parts) == 2
    assert (run.checkpoints[-1].step, run.checkpoints[-1].error) == (10, "")


def test_all_groups_die_and_fewer_go_on_from_the_newest_checkpoint_to_the_same_bits(
    text: str, tmp_path: Path, undisturbed: dict[int, str]
) -> None:
    """They die while another checkpoint is written; a machine that is slow has some left out."""
    interval = 5
    folder = {"directory": str(tmp_path), "interval_steps": interval, "keep": 2}
    with Miniature(bitwise(text, checkpoint=folder), SIZE, GROUPS) as run:
        run.hold_at(interval + 1)
        run.until(lambda: run.course.step == interval + 1, "the first steps")
        # On a busy machine writing takes longer than all steps that are left.
        first = tmp_path / f"step-{interval:08d}"
        run.until(lambda: len([*first.glob("part-*.json")]) == GROUPS, "the parts of the first")
        run.train_until(lambda: any(not r.error for r in run.checkpoints), "a whole checkpoint")
        begins = (run.course.step // interval + 1) * interval
        run.hold_at(begins + 1)
        run.until(lambda: run.course.step == begins + 1, "the begin of another checkpoint")
        for group in range(GROUPS):
            run.kill(group)
        run.scale(GROUPS - 1)
        run.until(lambda: lost_of(run) == [0, 1, 2], "the loss of all groups")
        kept = CheckpointFolder(str(tmp_path)).complete()[-1][0]
        redone = range(kept, run.course.step)
        assert redone, "nothing was lost with them"
        # Groups that were to copy from the lost ones have gone, so nobody knows these by number.
        run.train_until(lambda: len(run.members) == GROUPS - 1, "others in their place")
        run.finish()
        check_the_run(run, redone)
        check_the_bits(run, undisturbed)
    assert run.machine.wanted == GROUPS - 1
