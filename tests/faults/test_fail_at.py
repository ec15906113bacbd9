"""Workers die in every phase of a step and of a change, and nothing is lost or done twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.miniature.points import FailAt
from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupPhase, RunPhase
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job, train_in_one_process

pytestmark = pytest.mark.timeout(240)

SIZE, GROUPS = 2, 3
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
FAILS_AT = 6
VOLLEYS = 6


def job(text: str, steps: int, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=SIZE,
        training__global_batch_size=6 * SIZE,
        training__steps=steps,
        training__precision="fp64",
        training__optimizer=ADAMW,
        engine={"bucket_mib": 0.001},  # several in a step
        groups__wanted=GROUPS,
        **changes,
    )


def check_the_run(run: Miniature) -> None:
    """Every step once, with every sample once, the losses of one process, and equal groups."""
    assert run.machine.phase == RunPhase.FINISHED, run.machine.reason
    steps = run.spec.training.steps
    assert [step.step for step in run.steps] == list(range(steps))
    gold = train_in_one_process(run.spec).losses
    assert [step.loss for step in run.steps] == pytest.approx(gold, rel=1e-10)
    due = steps * run.spec.training.global_batch_size
    samples = run.course.samples
    assert (samples.due, samples.used, samples.repeated) == (due, due, 0)
    ends = [group.digests for group in run.groups.values() if group.ended.get(0)]
    assert len(ends) >= 2
    assert all(set(digests) == set(range(run.size)) for digests in ends)
    assert all(digests == ends[0] for digests in ends)


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
        lost = [g.group_id for g in run.machine.groups.values() if g.phase == GroupPhase.LOST]
    assert lost == [1, 2]


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


def test_several_groups_die_at_once_and_one_is_enough(text: str) -> None:
    with Miniature(job(text, 40), SIZE, GROUPS) as run:
        run.hold_at(5)
        run.until(lambda: run.course.step == 5, "the first steps")
        run.kill(0)
        run.kill(2, 1)
        run.train_with(1, 3, 4)
        run.finish()
        check_the_run(run)


@pytest.mark.parametrize("ranks", [(1,), (0, 1)], ids=["one worker", "a whole group"])
def test_a_silent_group_is_evicted_and_cannot_write_into_the_run(
    text: str, ranks: tuple[int, ...]
) -> None:
    with Miniature(job(text, 60), SIZE, GROUPS, silence_s=1.0) as run:
        run.hold_at(20)
        run.until(lambda: run.course.step == 20, "the first steps")
        run.stop(1, *ranks)
        run.hold_at(21)
        run.train_with(0, 2, 3)
        run.finish()
        check_the_run(run)
    assert run.machine.groups[1].phase == GroupPhase.LOST


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
    run.train_with(*survivors, *run.waiting)


def test_a_run_under_fire_is_the_run_of_one_process(text: str) -> None:
    chance = random.Random(1)
    with Miniature(job(text, 150), SIZE, GROUPS) as run:
        for _ in range(VOLLEYS):
            fire_a_volley(run, chance)
        run.finish()
        check_the_run(run)
    lost = [g for g in run.machine.groups.values() if g.phase == GroupPhase.LOST]
    assert len(lost) >= VOLLEYS
