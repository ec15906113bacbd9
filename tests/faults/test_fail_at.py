"""Workers die in every phase of a step and of a change, and nothing is lost or done twice.

With dropout, and a learning rate that changes at every step: both have to be right afterwards too.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.cluster.messages import Ended, Failed, ReplicationBroke
from mics_core.elastic.events import GroupPhase, RunPhase
from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.folders import CheckpointFolder
from tests.engine.jobs import small_job, train_in_one_process
from tests.faults import stuck_data

pytestmark = pytest.mark.timeout(240)

SIZE, GROUPS = 2, 3
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
FAILS_AT = 6
VOLLEYS = 4


def job(text: str, steps: int, size: int = SIZE, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=size,
        training__global_batch_size=6 * SIZE,
        training__steps=steps,
        training__precision="fp64",
        training__optimizer=ADAMW,
        training__schedule={"kind": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
        model__dropout=0.1,
        engine={"bucket_mib": 0.001},  # several in a step
        groups__wanted=GROUPS,
        **changes,
    )


@cache
def gold_losses(course: str, size: int) -> list[float]:
    return train_in_one_process(parse_job_spec(json.loads(course)), size).losses


def course_of(spec: JobSpec) -> str:
    """What decides on a job's losses."""
    return spec.model_dump_json(include={"name", "model", "data", "training"})


def check_the_run(run: Miniature, redone: range = range(0)) -> None:
    """Every step once, with every sample once, the losses of one process, and equal groups.

    Steps that were `redone`, since all that held the states were gone, were committed twice; the
    second ones count.
    """
    assert run.machine.phase == RunPhase.FINISHED, run.machine.reason
    steps = run.spec.training.steps
    told = [*range(redone.stop), *range(redone.start, steps)] if redone else [*range(steps)]
    assert [step.step for step in run.steps] == told
    gold = gold_losses(course_of(run.spec), run.size)
    assert [step.loss for step in run.steps] == pytest.approx([gold[s] for s in told], rel=1e-10)
    due = steps * run.spec.training.global_batch_size
    samples = run.course.samples
    assert (samples.due, samples.used, samples.repeated) == (due, due, 0)
    ends = [group.digests for group in run.groups.values() if group.ended.get(0)]
    assert len(ends) >= 2
    assert all(set(digests) == set(range(run.size)) for digests in ends)
    assert all(digests == ends[0] for digests in ends)


def lost_of(run: Miniature) -> list[int]:
    groups = run.machine.groups.values()
    return [group.group_id for group in groups if group.phase == GroupPhase.LOST]


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
    with Miniature(job(text, 30), SIZE, GROUPS, faults=[fault]) as run:
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
    with Miniature(job(text, 30), SIZE, GROUPS, faults=faults) as run:
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


def test_a_survivor_one_step_behind_goes_on_from_its_own_states_if_its_source_dies(
    text: str,
) -> None:
    faults = [
        FailAt(group=1, rank=0, step=FAILS_AT, phase="vote"),
        FailAt(group=2, rank=0, step=FAILS_AT, phase="longer second hop"),
        # One of its two workers has part of the copy then, the other one may have all of its own.
        FailAt(group=0, rank=0, step=FAILS_AT + 1, phase="copy out"),
    ]
    with Miniature(job(text, 30), SIZE, GROUPS, faults=faults) as run:
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
    with Miniature(job(text, 30), SIZE, GROUPS, faults=faults) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 3, 4)
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [1, 2]


@pytest.mark.parametrize(
    ("group", "phase", "members"),
    [(2, "copy in", [0, 1, 3]), (0, "copy out", [1, 2, 3])],
    ids=["the newcomer", "a source"],
)
def test_either_end_of_a_copy_dies(text: str, group: int, phase: str, members: list[int]) -> None:
    fault = FailAt(group=group, rank=1, step=-1, phase=phase)
    with Miniature(job(text, 40), SIZE, 2, faults=[fault]) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(3)
        run.until(lambda: run.machine.groups[2].phase == GroupPhase.READY, "a third group")
        run.hold_at(6)  # the copy begins
        run.train_with(*members)
        run.finish()
        check_the_run(run)


def test_a_newcomer_whose_data_have_grown_fails_and_the_members_train_on(
    text: str, tmp_path: Path
) -> None:
    data, content = tmp_path / "data.txt", Path(text).read_bytes()
    data.write_bytes(content)
    with Miniature(job(str(data), 40), SIZE, 2) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        data.write_bytes(content + b"They have grown. " * 20)
        run.scale(3)
        run.until(lambda: 2 in run.waiting, "a third group")
        data.write_bytes(content)
        run.train_until(lambda: 2 in lost_of(run), "the loss of group 2")
        run.train_with(0, 1, 3)
        run.finish()
        check_the_run(run)
        assert lost_of(run) == [2]
        assert all(run.machine.groups[group].entered for group in (0, 1)), "they were not restarted"
    reason = run.machine.groups[2].reason
    assert re.search(r"cannot join: the run's data held \d+ samples, and now there are \d+", reason)
    assert "Give every node the data that the run began with" in reason


@pytest.mark.parametrize(
    ("group", "phase"), [(2, "copy in"), (0, "copy out")], ids=["the newcomer", "a source"]
)
def test_either_end_of_a_copy_is_stopped(text: str, group: int, phase: str) -> None:
    fault = FailAt(group, rank=1, step=-1, phase=phase, stops=True)
    limits = {"silence_s": 3.0, "first_step_s": 6.0, "finds_missing": True}
    with Miniature(job(text, 60), SIZE, 2, faults=[fault], **limits) as run:
        run.hold_at(4)
        run.until(lambda: run.course.step == 4, "the first steps")
        run.scale(3)
        run.until(lambda: run.machine.groups[2].phase == GroupPhase.READY, "a third group")
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [group]


@pytest.mark.parametrize("phase", ["second hop", "vote"])
def test_a_worker_dies_in_a_second_hop_by_node(text: str, phase: str) -> None:
    """Four groups stand on two nodes; when one is gone their gradients take another way."""
    fault = FailAt(group=2, rank=0, step=FAILS_AT, phase=phase)
    with Miniature(job(text, 30, 1), 1, 4, faults=[fault], groups_per_node=2) as run:
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
    with Miniature(job(text, 40), SIZE, GROUPS, faults=faults) as run:
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


def test_a_worker_dies_while_it_writes_a_checkpoint(text: str, tmp_path: Path) -> None:
    # The first one: under load another would still be written, and that of step 10 left out.
    spec = job(text, 30, checkpoint={"directory": str(tmp_path), "interval_steps": 10, "keep": 9})
    fault = FailAt(group=1, rank=0, step=9, phase="checkpoint")
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
        (0, "checkpoint"),
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
    limits = {"silence_s": 3.0, "finds_missing": True}
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


def test_all_groups_die_and_fewer_go_on_from_the_newest_checkpoint(
    text: str, tmp_path: Path
) -> None:
    """They die while another checkpoint is written; a machine that is slow has some left out."""
    interval = 5
    folder = {"directory": str(tmp_path), "interval_steps": interval, "keep": 2}
    with Miniature(job(text, 40, checkpoint=folder), SIZE, GROUPS) as run:
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
    assert run.machine.wanted == GROUPS - 1


def test_several_groups_die_at_once_and_one_is_enough(text: str) -> None:
    with Miniature(job(text, 40), SIZE, GROUPS) as run:
        run.hold_at(5)
        run.until(lambda: run.course.step == 5, "the first steps")
        run.kill(0)
        run.kill(2, 1)
        run.train_with(1, 3, 4)
        run.finish()
        check_the_run(run)


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
    return isinstance(end, Failed) and not end.own_error and " broke at step 19 " in end.error


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
        assert [word for word in evicted.last_words if word.rank in ranks] == []
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
        # So is whether they were stopped in an exchange of their own, whose time is then over.
        if any(isinstance(word, Failed) for word in ends.values()):
            assert {rank: _is_late(ends[rank]) for rank in ranks} == dict.fromkeys(ranks, True)
        else:
            assert ends == {rank: Ended(rank, finished=False) for rank in ranks}, "asked to leave"
    else:
        assert {type(word) for word in ends.values()} == {Failed}
        assert " broke: " in ends[1].error, "its peer is gone"


def test_a_worker_that_is_stuck_in_the_users_data_is_evicted_by_name(tmp_path: Path) -> None:
    source = {
        "callable": "tests.faults.stuck_data:build",
        "arguments": {"folder": str(tmp_path), "sequence_length": 16},
    }
    with Miniature(
        job("", 40, data=source, model__vocab_size=stuck_data.VOCABULARY),
        SIZE,
        GROUPS,
        silence_s=1.0,
    ) as run:
        run.hold_at(12)
        run.until(lambda: run.course.step == 12, "the first steps")
        stuck_data.stick(tmp_path, run.groups[1].pids[1])
        run.hold_at(13)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
    stuck = run.machine.groups[1]
    assert stuck.phase == GroupPhase.LOST
    assert stuck.reason.startswith("Rank 0: Partition group 1 broke at step 12 on rank 0: ")
    assert "(all ranks answer; rank 1 is in __getitem__ (" in stuck.reason
    assert f"{stuck_data.__file__}:" in stuck.reason


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
    limits = {"silence_s": 3.0, "finds_missing": True}
    with Miniature(job(text, 30, size), size, GROUPS, faults=faults, **limits) as run:
        run.finish()
        check_the_run(run)
    assert lost_of(run) == sorted([1, group])


def test_a_newcomer_is_stopped_at_the_door(text: str) -> None:
    faults = [FailAt(group=2, rank=1, step=-1, phase="assembling", stops=True)]
    with Miniature(job(text, 40), SIZE, 2, faults=faults, silence_s=2.0, finds_missing=True) as run:
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


def test_a_run_whose_only_worker_is_stopped_begins_again(text: str) -> None:
    with Miniature(job(text, 30), 1, 1, silence_s=2.0, ends_stalls=True) as run:
        run.go_on()
        run.until(lambda: run.course.step >= 5, "the first steps")
        run.stop(0)
        run.until(lambda: 0 not in run.members, "its eviction")
        run.finish()
        assert [step.step for step in run.steps if step.generation > 1] == list(range(30))
    lost = run.machine.groups[0]
    assert lost.phase == GroupPhase.LOST
    assert lost.reason.startswith("No group has said anything for ")


def test_a_sample_that_cannot_be_read_ends_the_run_of_several_groups_with_that_error(
    text: str,
) -> None:
    poisoned = FAILS_AT * 6 + 4
    arguments = {"num_samples": 90, "sequence_length": 16, "poisoned": poisoned}
    data = {"callable": "tests.faults.poisoned_data:build", "arguments": arguments}
    spec = small_job(
        text, training__steps=15, training__global_batch_size=6, data=data, groups__wanted=2
    )
    with Miniature(spec, 1, 2, minimum=2) as run:
        run.finish()
    assert run.machine.phase == RunPhase.FAILED
    assert run.machine.reason.startswith(f"Step {FAILS_AT} failed in groups ")
    assert f"ValueError: position {poisoned} of the data cannot be read" in run.machine.reason
    assert [step.step for step in run.steps] == list(range(FAILS_AT))
    assert len(run.machine.groups) == 3, "one group was replaced, and none after that"


def fire_a_volley(run: Miniature, chance: random.Random) -> None:
    """Kill workers of some groups somewhere in six steps, and bring others in their place."""
    run.until(lambda: len(run.members) >= 2, "two groups that train")
    begin = run.course.step
    run.hold_at(begin + 6)
    at = begin + chance.randrange(6)
    run.until(lambda: run.course.step >= at, f"step {at}")
    members = run.members
    for victim in chance.sample(members, k=chance.randrange(1, len(members))):
        run.kill(victim, *chance.choice([(0,), (1,), (0, 1)]))
    run.until(lambda: run.course.step >= begin + 6, f"step {begin + 6}")
    survivors = run.members
    run.until(lambda: len(survivors) + len(run.waiting) >= 2, "groups in the place of the lost")
    there = {*survivors, *run.waiting}
    run.train_until(lambda: there <= {*run.members}, f"training with {there}")


def test_a_run_under_fire_is_the_run_of_one_process(text: str) -> None:
    chance = random.Random(1)
    with Miniature(job(text, 100), SIZE, GROUPS) as run:
        for _ in range(VOLLEYS):
            fire_a_volley(run, chance)
        run.finish()
        check_the_run(run)
    assert len(lost_of(run)) >= VOLLEYS


BITWISE_STEPS = 45


@pytest.fixture(scope="module")
def undisturbed(text: str) -> dict[int, str]:
    """The bits of each worker's states after the run of one group that nothing befell."""
    with Miniature(bitwise(text), SIZE, 1) as run:
        run.finish()
        return run.groups[0].digests


def bitwise(text: str) -> JobSpec:
    return job(text, BITWISE_STEPS, training__determinism="bitwise")


def test_no_bit_depends_on_a_worker_that_dies_where_gradients_cross_in_one_order(
    text: str, undisturbed: dict[int, str]
) -> None:
    fault = FailAt(group=1, rank=1, step=FAILS_AT, phase="ordered second hop")
    with Miniature(bitwise(text), SIZE, GROUPS, faults=[fault]) as run:
        run.hold_at(FAILS_AT + 2)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
    assert lost_of(run) == [1]
    ends = [group.digests for group in run.groups.values() if group.ended.get(0)]
    assert all(digests == undisturbed for digests in ends)


@pytest.mark.parametrize("seed", [2, 3])
def test_no_bit_depends_on_a_random_schedule_of_losses_joins_and_leaves(
    text: str, undisturbed: dict[int, str], seed: int
) -> None:
    chance = random.Random(seed)
    with Miniature(bitwise(text), SIZE, GROUPS) as run:
        for _ in range(2):
            run.scale(chance.choice((2, 3)))
            fire_a_volley(run, chance)
        run.finish()
        check_the_run(run)
    assert len({step.num_groups for step in run.steps}) > 1
    ends = [group.digests for group in run.groups.values() if group.ended.get(0)]
    assert all(digests == undisturbed for digests in ends)
