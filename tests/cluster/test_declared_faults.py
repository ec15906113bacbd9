"""Faults inside a phase, and the loss of the supervisor's node, on real clusters.

`tests/faults` has the first in every phase, without Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.miniature.points import FailAt
from mics_core.cluster.driver import new_job_id, run_job
from mics_core.cluster.local import LocalCluster
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.status import CheckpointEvent, GroupState
from tests.cluster.conftest import StartJob
from tests.cluster.control import Control
from tests.cluster.jobs import recorded_job
from tests.cluster.leftovers import Leftovers
from tests.cluster.outcomes import (
    check_that_it_lived_on,
    check_the_run,
    lost_of,
    members_of,
    num_groups_now,
    pid_of_victim,
    train_until,
    wait_for,
)
from tests.cluster.running import RunningJob, eventually, kill_runner, place_of_supervisor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NUM_NODES = 2
STEPS = 30


def place_of_event(job: RunningJob, group_id: int, state: GroupState) -> int:
    [event] = job.group_events(group_id, state)
    return event.sequence


def checkpoints_of(job: RunningJob) -> list[tuple[int, str]]:
    events = [event for event in job.events if isinstance(event, CheckpointEvent)]
    return [(event.step, event.error) for event in events]


def check_that_it_is_whole(directory: Path, step: int) -> None:
    folder = CheckpointFolder(str(directory))
    stored = folder.read(step)
    assert folder.damage_of(stored, [file for part in stored.parts for file in part.files]) == ""


# A source dies while it sends the states to a newcomer; the newcomer in its place dies while it
# receives them; and one of those who are left dies while it writes its part of a checkpoint.

SOURCE = FailAt(group=0, rank=0, step=-1, phase="copy out")
NEWCOMER = FailAt(group=3, rank=0, step=-1, phase="copy in")
SAVED_AT = 24
WRITER = FailAt(group=2, rank=0, step=SAVED_AT - 1, phase="checkpoint")


@dataclass(frozen=True)
class Copied:
    job: RunningJob
    pid_of_survivor: int
    pid_of_first_newcomer: int
    directory: Path


@pytest.fixture(scope="module")
def copied(start_job: StartJob, tmp_path_factory: pytest.TempPathFactory) -> Copied:
    """Group 2 joins and group 0 dies; group 3 joins and dies; group 2 dies. Group 1 is left."""
    directory = tmp_path_factory.mktemp("checkpoints")
    job = start_job(
        STEPS,
        faults=[SOURCE, NEWCOMER, WRITER],
        partition_size=1,
        checkpoint={"directory": str(directory), "interval_steps": SAVED_AT},
    )
    job.train_to(2)
    [survivor] = job.pids(1)
    job.scale(3)
    wait_for(job, 2, GroupState.READY)
    [newcomer] = job.pids(2)
    train_until(job, 0, GroupState.LOST)
    train_until(job, 2, GroupState.MEMBER)
    wait_for(job, 3, GroupState.READY)
    train_until(job, 3, GroupState.LOST)
    job.scale(2)  # nobody is to come in its place
    assert job.control.allowed < WRITER.step
    job.train_to(WRITER.step)
    wait_for(job, 2, GroupState.LOST)
    job.scale(1)
    job.train_to_the_end()
    return Copied(job, survivor, newcomer, directory)


def test_copies_that_break_at_either_end_change_nothing(copied: Copied) -> None:
    check_the_run(copied.job)
    check_that_it_lived_on(copied.job, 1, [copied.pid_of_survivor])
    assert lost_of(copied.job) == [0, 2, 3]


def test_a_source_dies_and_the_newcomer_copies_from_another(copied: Copied) -> None:
    job = copied.job
    assert [pid_of_victim(job, SOURCE)] == job.pids(0)
    assert members_of(job)[:3] == [[0, 1], [0, 1, 2], [1, 2]]
    joined = place_of_event(job, 2, GroupState.MEMBER)
    assert place_of_event(job, 0, GroupState.LOST) < joined, "it had its states before"
    assert job.pids(2) == [copied.pid_of_first_newcomer], "it was restarted"


def test_a_newcomer_dies_in_its_copy_and_never_trains(copied: Copied) -> None:
    job = copied.job
    assert [pid_of_victim(job, NEWCOMER)] == job.pids(3)
    assert members_of(job)[3:5] == [[1, 2, 3], [1, 2]]
    assert not job.group_events(3, GroupState.MEMBER)


def test_a_checkpoint_whose_writer_dies_is_given_up_and_the_next_is_complete(
    copied: Copied,
) -> None:
    job = copied.job
    assert pid_of_victim(job, WRITER) == copied.pid_of_first_newcomer
    told = f"Group {WRITER.group} went away while it was written."
    assert checkpoints_of(job) == [(SAVED_AT, told), (STEPS, "")]
    assert [step for step, _ in CheckpointFolder(str(copied.directory)).complete()] == [STEPS]
    check_that_it_is_whole(copied.directory, STEPS)


# A group's runner dies when the second hop of one survivor is done and that of another one is not;
# the latter's dies while its worker writes its part of the last checkpoint.

HOP = 8
VICTIM = FailAt(group=1, rank=0, step=HOP, phase="vote", stops=True)
UNFINISHED = FailAt(group=2, rank=0, step=HOP, phase="longer second hop")
LAST_WRITER = FailAt(group=2, rank=0, step=STEPS - 1, phase="checkpoint", stops=True)


@dataclass(frozen=True)
class Split:
    job: RunningJob
    pids: list[int]
    directory: Path


@pytest.fixture(scope="module")
def split(start_job: StartJob, tmp_path_factory: pytest.TempPathFactory) -> Split:
    directory = tmp_path_factory.mktemp("checkpoints")
    job = start_job(
        STEPS,
        faults=[VICTIM, UNFINISHED, LAST_WRITER],
        partition_size=1,
        groups={"minimum": 1, "wanted": 3, "maximum": 3},
        checkpoint={"directory": str(directory), "interval_steps": STEPS},
    )
    job.train_until(lambda job: num_groups_now(job) == 3, "a step of three groups")
    pids = [pid for group in range(3) for pid in job.pids(group)]
    assert job.control.allowed < HOP
    job.train_to(HOP)  # who commits it waits for the samples of the next one
    kill_runner(job, 1)
    eventually(lambda: pid_of_victim(job, UNFINISHED), "the end of group 2's second hop", 30.0)
    job.scale(2)  # nobody is to come in its place
    job.train_until(
        lambda job: job.has_committed(HOP + 1) and num_groups_now(job) == 2,
        "a step of those who are left",
    )
    job.control.allow(STEPS)
    eventually(lambda: pid_of_victim(job, LAST_WRITER), "the last checkpoint", 60.0)
    kill_runner(job, 2)
    job.train_to_the_end()
    return Split(job, pids, directory)


def test_a_second_hop_that_only_some_have_finished_changes_nothing(split: Split) -> None:
    check_the_run(split.job)
    check_that_it_lived_on(split.job, 0, [split.pids[0]])
    assert lost_of(split.job) == [1, 2]


def test_who_has_not_finished_its_second_hop_catches_up_with_who_has(split: Split) -> None:
    job = split.job
    assert pid_of_victim(job, VICTIM) == split.pids[1]
    assert pid_of_victim(job, UNFINISHED) == split.pids[2]
    committed, next_one = job.steps[HOP : HOP + 2]
    members = {step.step: members_of(job)[step.generation - 1] for step in (committed, next_one)}
    assert members == {HOP: [0, 1, 2], HOP + 1: [0, 2]}
    assert committed.num_groups == 3, "it was done again without the victim"
    assert next_one.num_groups == 1, "nobody was a step behind"


def test_the_last_checkpoint_is_completed_by_who_is_left(split: Split) -> None:
    job = split.job
    # The process that did not finish its second hop: it was not restarted either.
    assert pid_of_victim(job, LAST_WRITER) == split.pids[2]
    assert checkpoints_of(job)[-1] == (STEPS, "")
    check_that_it_is_whole(split.directory, STEPS)
    stored = CheckpointFolder(str(split.directory)).read(STEPS)
    assert len(stored.parts) == 1, "both had written their parts"


# The driver, the supervisor and at least one group die with their node.


@dataclass(frozen=True)
class Orphaned:
    job: RunningJob
    node: str
    nodes_of_supervisor: list[str]
    pids: dict[int, int]
    gone: list[int]
    killed_at: int


@pytest.fixture(scope="module")
def orphaned(
    cluster: LocalCluster, leftovers: Leftovers, tmp_path_factory: pytest.TempPathFactory
) -> Orphaned:
    """Three groups on two nodes of two workers; the one with the driver is killed for good."""
    node, folder = cluster.node_ids[0], tmp_path_factory.mktemp("job")
    groups = {"minimum": 1, "wanted": 3, "maximum": 3}
    spec = recorded_job(folder, STEPS, partition_size=1, groups=groups)
    job_id = new_job_id(spec.name)
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    driver = ray.remote(run_job).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    driven = driver.remote(job_id, spec)
    with RunningJob(spec, Control(folder), job_id, look=leftovers.look) as job:
        job.train_until(lambda job: num_groups_now(job) == 3, "a step of three groups")
        job.train_to(job.control.allowed + 2)
        story = Orphaned(
            job,
            node,
            [place_of_supervisor(job_id)[0]],
            {group: job.pids(group)[0] for group in range(3)},
            [group for group in range(3) if job.node_of(group) == node],
            killed_at=job.control.allowed + 1,
        )
        cluster.kill_node(node)
        job.control.allow(story.killed_at)
        for group in story.gone:
            wait_for(job, group, GroupState.LOST)
        job.scale(3 - len(story.gone))  # nobody is to come in their place
        story.nodes_of_supervisor.append(place_of_supervisor(job_id)[0])
        job.train_to_the_end()
        with pytest.raises(RayError):
            ray.get(driven)
    return story


def test_the_supervisor_lives_where_its_driver_is_and_then_elsewhere(orphaned: Orphaned) -> None:
    before, after = orphaned.nodes_of_supervisor
    assert before == orphaned.node
    assert after not in ("", orphaned.node)


def test_the_groups_on_other_nodes_outlive_the_supervisors_node(orphaned: Orphaned) -> None:
    job, survivors = orphaned.job, orphaned.pids.keys() - orphaned.gone
    check_the_run(job)
    assert survivors
    for group in survivors:
        check_that_it_lived_on(job, group, [orphaned.pids[group]])


def test_the_groups_on_the_supervisors_node_are_lost_when_it_is_back(orphaned: Orphaned) -> None:
    job = orphaned.job
    assert orphaned.gone
    assert lost_of(job) == orphaned.gone
    assert not any(psutil.pid_exists(orphaned.pids[group]) for group in orphaned.gone)
    before, at = job.steps[orphaned.killed_at - 1 : orphaned.killed_at + 1]
    assert (before.num_groups, at.num_groups) == (3, 3 - len(orphaned.gone))


def test_watchers_see_no_gap_when_the_supervisors_node_is_lost(orphaned: Orphaned) -> None:
    sequences = [event.sequence for event in orphaned.job.events]
    assert sequences == list(range(1, len(sequences) + 1))
