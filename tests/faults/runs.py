"""The job of these runs, and what must hold of each whatever befell it.

With dropout, and a learning rate that changes at every step: both have to be right afterwards too.
"""

from __future__ import annotations

import json
from functools import cache

import pytest

from benchmarks.miniature.run import Miniature
from mics_core.elastic.events import GroupPhase, RunPhase
from mics_core.spec import JobSpec, parse_job_spec
from tests.engine.jobs import small_job, train_in_one_process

SIZE, GROUPS = 2, 3
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
FAILS_AT = 6
BITWISE_STEPS = 45


def job(text: str, steps: int, size: int = SIZE, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=size,
        training__global_batch_size=6 * SIZE,
        training__steps=steps,
        training__precision="fp64",
        training__optimizer=ADAMW,
        training__schedule={"kind": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
        model__num_layers=1,
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


def bitwise(text: str, **changes: object) -> JobSpec:
    return job(text, BITWISE_STEPS, training__determinism="bitwise", **changes)


def check_the_bits(run: Miniature, undisturbed: dict[int, str]) -> None:
    """Every worker that came to the end has the states of one that nothing befell."""
    ends = [group.digests for group in run.groups.values() if group.ended.get(0)]
    assert all(digests == undisturbed for digests in ends)


def lost_of(run: Miniature) -> list[int]:
    groups = run.machine.groups.values()
    return [group.group_id for group in groups if group.phase == GroupPhase.LOST]
