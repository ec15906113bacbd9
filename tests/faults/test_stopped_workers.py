"""Workers stop without dying: they are evicted, and leave quietly if they wake up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import DEADLINE_S, Miniature
from mics_core.cluster.messages import Ended, Failed, ReplicationBroke
from mics_core.elastic.events import GroupPhase
from mics_core.spec.folders import CheckpointFolder
from tests.faults.runs import FAILS_AT, GROUPS, SIZE, check_the_run, job, lost_of

pytestmark = pytest.mark.timeout(240)


def seen_of(run: Miniature, folder: Path) -> tuple[object, ...]:
    """What the world sees of a run: its steps, its samples, its members and its checkpoints."""
    complete = [Path(path) for _, path in CheckpointFolder(str(folder)).complete()]
    files = {
        file: file.read_bytes() for path in complete for file in path.rglob("*") if file.is_file()
    }
    machine, reports = run.machine, list(run.checkpoints)
    return run.steps, run.course.samples, machine.generation, machine.members, reports, files


def _is_late(end: Ended | Failed) -> bool:
    """Whether a worker ended because its peer had not answered in time, and had no error itself."""
    said = ("Partition group 1 broke at step 19 ", "Partition group 1 broke at step 20 ")
    return isinstance(end, Failed) and not end.own_error and end.error.startswith(said)


@pytest.mark.parametrize("ranks", [(1,), (0, 1)], ids=["one worker", "a whole group"])
def test_a_stopped_group_that_wakes_up_finds_that_it_was_evicted_and_goes_quietly(
    text: str, tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """It is stopped where it is about to write a checkpoint, and nobody can end it."""
    spec = job(text, 60, checkpoint={"directory": str(tmp_path), "interval_steps": 20, "keep": 9})
    with Miniature(spec, SIZE, GROUPS, silence_s=1.0) as run:
        run.hold_at(20)
        run.until(lambda: run.course.step == 20, "the first steps")
        evicted = run.groups[1]
        run.put_out_of_reach(1)
        run.stop(1, *ranks)
        run.hold_at(21)
        run.train_with(0, 2, 3)
        run.hold_at(42)
        run.until(lambda: run.course.step == 42, "steps without it")
        run.train_until(lambda: 40 in [r.step for r in run.checkpoints], "a whole checkpoint")
        held_at = run.course.step + 2
        run.hold_at(held_at)
        run.until(lambda: run.course.step == held_at, "members that wait")
        assert run.machine.groups[1].phase == GroupPhase.LOST
        assert all(evicted.processes[rank].is_alive() for rank in ranks)
        # A peer that runs on has missed the stopped one, and may have ended over it.
        assert [word for word in evicted.last_words if getattr(word, "rank", 0) in ranks] == []
        before = seen_of(run, tmp_path)
        run.wake(1, *ranks)
        run.until(lambda: not any(p.is_alive() for p in evicted.processes), "its own end")
        run.until(lambda: not evicted.pipes, "its last words")
        assert seen_of(run, tmp_path) == before
        assert [process.exitcode for process in evicted.processes] == [0] * SIZE, "not killed"
        run.finish()
        check_the_run(run)
    told = {report.step: report.error for report in run.checkpoints}
    assert told == {20: "Group 1 went away while it was written.", 40: "", 60: ""}
    broke = [word for word in evicted.last_words if isinstance(word, ReplicationBroke)]
    assert all((word.generation, word.step, word.has_state) == (1, 20, True) for word in broke)
    ends = {word.rank: word for word in evicted.last_words if isinstance(word, Ended | Failed)}
    if len(ranks) == SIZE:
        # Whether they see first that nobody answers, or the plan without them, is chance.
        assert {word.rank for word in broke} in (set(), set(ranks)), "both or none"
        # So is whether they were stopped in an exchange of their own, whose time is then over: in
        # the last one of step 19, or in the next step's first.
        if any(isinstance(word, Failed) for word in ends.values()):
            assert [end for end in ends.values() if not _is_late(end)] == []
        else:
            assert ends == {rank: Ended(rank, finished=False) for rank in ranks}, "asked to leave"
    else:
        assert {type(word) for word in ends.values()} == {Failed}
        assert " broke: " in ends[1].error, "its peer is gone"


@pytest.mark.parametrize(
    ("size", "group", "phase"),
    [(1, 0, "regroup"), (2, 2, "regroup"), (2, 0, "assembling"), (2, 2, "after regrouping")],
    ids=["the store's host", "before it connects", "the host connected", "after all met"],
)
def test_a_worker_is_stopped_while_the_survivors_regroup(
    text: str, size: int, group: int, phase: str
) -> None:
    faults = [
        FailAt(group=1, rank=0, step=FAILS_AT, phase="forward"),
        FailAt(group, rank=size - 1, step=FAILS_AT, phase=phase, stops=True),
    ]
    # The survivors have computed before, so none of them may have the time of a first step.
    limits = {"silence_s": 2.0, "first_step_s": 2 * DEADLINE_S, "finds_missing": True}
    with Miniature(job(text, 30, size), size, GROUPS, faults=faults, **limits) as run:
        run.finish()
        check_the_run(run)
    assert lost_of(run) == sorted([1, group])


def test_a_run_whose_only_worker_is_stopped_begins_again(text: str) -> None:
    limits = {"silence_s": 2.0, "first_step_s": 2.0, "ends_stalls": True}
    with Miniature(job(text, 30), 1, 1, **limits) as run:
        run.go_on()
        run.until(lambda: run.course.step >= 5, "the first steps")
        run.stop(0)
        run.until(lambda: 0 not in run.members, "its eviction")
        run.finish()
        assert [step.step for step in run.steps if step.generation > 1] == list(range(30))
    lost = run.machine.groups[0]
    assert lost.phase == GroupPhase.LOST
    assert lost.reason.startswith("No group has said anything for ")
