"""What must hold of a job at its end whatever befell it, and what befell it."""

from __future__ import annotations

import pytest

from benchmarks.miniature.points import FailAt
from mics_core.spec.status import GroupState, JobState
from tests.cluster.faulty_model import Marks
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, gold_losses
from tests.cluster.recording_data import Reads
from tests.cluster.running import RunningJob


def check_the_run(job: RunningJob) -> None:
    """Every step was committed once, with every sample once and the loss of one process."""
    status, steps = job.status(), job.spec.training.steps
    assert (status.state, status.reason) == (JobState.FINISHED, "All steps are done.")
    assert [step.step for step in job.steps] == list(range(steps))
    assert [step.loss for step in job.steps] == pytest.approx(gold_losses(steps), rel=1e-5)
    due = steps * GLOBAL_BATCH_SIZE
    assert (status.samples.due, status.samples.used, status.samples.repeated) == (due, due, 0)


def check_that_it_lived_on(job: RunningJob, group_id: int, pids: list[int]) -> None:
    """A group's workers were these processes all the time, and they trained the last step."""
    assert job.pids(group_id) == pids
    last = job.spec.training.steps - 1
    assert all(reads_of(job).of_step(last, pid) for pid in pids)
    assert job.status().groups[group_id].state == GroupState.LEFT
    assert len(job.group_events(group_id, GroupState.STARTING)) == 1


def reads_of(job: RunningJob) -> Reads:
    return Reads(job.control.folder, job.spec.training.steps, GLOBAL_BATCH_SIZE)


def pid_of_victim(job: RunningJob, fault: FailAt) -> int | None:
    return Marks(job.control.folder).pid(fault)


def members_of(job: RunningJob) -> list[list[int]]:
    """The groups of each generation."""
    return [sorted(generation.groups) for generation in job.status().generations]


def lost_of(job: RunningJob) -> list[int]:
    return [group.group_id for group in job.status().groups if group.state == GroupState.LOST]


def num_groups_now(job: RunningJob) -> int:
    return job.steps[-1].num_groups if job.steps else 0


def wait_for(job: RunningJob, group_id: int, state: GroupState) -> None:
    job.wait_until(lambda job: job.group_events(group_id, state), f"group {group_id}, {state},")


def train_until(job: RunningJob, group_id: int, state: GroupState) -> None:
    job.train_until(lambda job: job.group_events(group_id, state), f"group {group_id}, {state},")
