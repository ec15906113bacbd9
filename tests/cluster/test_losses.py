"""What a job does when workers, groups and nodes come and go, each seen through its events."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import (
    CheckpointEvent,
    GroupState,
    GroupStatus,
    JobState,
    StateEvent,
    StepEvent,
)
from tests.cluster.conftest import StartJob
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, gold_losses
from tests.cluster.recording_data import Reads
from tests.cluster.running import RunningJob, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_NODES = 2


def assert_losses_are_gold(job: RunningJob) -> None:
    """The committed steps have the losses of one plain process, none is missing or repeated."""
    steps = job.steps
    assert [step.step for step in steps] == list(range(len(steps)))
    gold = gold_losses(job.spec.training.steps)[: len(steps)]
    assert [step.loss for step in steps] == pytest.approx(gold, rel=1e-5)


def num_rooms_of_runs() -> int:
    """Placement groups that Ray Train has made for itself; ours have names."""
    table = placement_group_table().values()
    return sum(not group["name"] and group["state"] == "CREATED" for group in table)


# A worker is killed; then a user's model raises, in one worker, and later in every worker.

WORDS = "RuntimeError: the model was told to fail"


@dataclass(frozen=True)
class Killed:
    job: RunningJob
    pids_of_survivor: list[int]
    killed_at: int
    raised_at: int

    @property
    def reads(self) -> Reads:
        return Reads(self.job.control.folder, self.job.spec.training.steps, GLOBAL_BATCH_SIZE)


@pytest.fixture(scope="module")
def killed(start_job: StartJob) -> Killed:
    """One worker of group 1 gets SIGKILL; group 2 replaces the group, and one of its models raises.

    Group 3 is to replace that, and is scaled away while Ray Train starts it.
    """
    job = start_job(40, determinism="bitwise")
    job.train_to(2)
    pids_of_survivor = job.pids(0)
    os.kill(job.pids(1)[1], signal.SIGKILL)
    job.train_to(3)
    job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
    job.train_until(lambda job: job.has_entered(0, 2), "the entry of the group in its place")
    job.train_to(job.control.allowed + 2)
    raised_at = job.control.allowed + 1
    job.control.fail_models(job.pids(2)[1])
    job.train_to(raised_at)
    job.wait_until(lambda job: job.group_events(3, GroupState.STARTING), "nodes for group 3")
    eventually(lambda: num_rooms_of_runs() == 2, "the room of group 3's run")
    job.scale(1)
    job.wait_until(lambda job: job.group_events(3, GroupState.LEFT), "the end of group 3")
    eventually(lambda: ray.available_resources().get("CPU") == 2, "the room that group 3 gave back")
    job.train_to(raised_at + 1)
    job.control.fail_models()
    job.train_to_the_end()
    return Killed(job, pids_of_survivor, killed_at=3, raised_at=raised_at)


def test_a_killed_worker_is_the_loss_of_its_whole_group_which_says_why(killed: Killed) -> None:
    group = killed.job.status().groups[1]
    assert group.state == GroupState.LOST
    # No heartbeat and no time limit tells so soon.
    where = f"on node {group.workers[1].node_id[:8]}"
    assert group.reason == f"The process of rank 1 {where} is gone: its connection closed."
    pids = killed.job.pids(1)
    eventually(
        lambda: not any(psutil.pid_exists(pid) for pid in pids),
        f"the end of the processes {pids} of the lost group",
    )


def test_the_survivors_commit_the_step_without_the_lost_group(killed: Killed) -> None:
    steps = killed.job.steps[: killed.killed_at + 1]
    assert [step.num_groups for step in steps] == [2, 2, 2, 1]


def test_another_group_replaces_the_lost_one(killed: Killed) -> None:
    lost = killed.job.status().groups[1].reason
    placing, *_ = killed.job.group_events(2, GroupState.PLACING)
    assert placing.reason == f"It replaces group 1: {lost}"
    reasons = [record.reason for record in killed.job.entered]
    assert reasons[1:3] == [f"Group 1 was lost: {lost}", "Group 2 joins."]


def test_the_survivors_of_a_lost_group_are_not_restarted(killed: Killed) -> None:
    assert killed.job.pids(0) == killed.pids_of_survivor


def test_losses_and_a_join_change_no_loss_value(killed: Killed) -> None:
    assert_losses_are_gold(killed.job)


def test_only_what_a_lost_group_had_read_is_read_by_others_too(killed: Killed) -> None:
    once = list(range(GLOBAL_BATCH_SIZE))
    groups_of = {record.number: record.groups for record in killed.job.entered}
    of_lost = {killed.killed_at: set(killed.job.pids(1)), killed.raised_at: set(killed.job.pids(2))}
    for step in killed.job.steps:
        members = [pid for group in groups_of[step.generation] for pid in killed.job.pids(group)]
        assert killed.reads.of_step(step.step, *members) == once
        others = killed.reads.pids - {*members} - of_lost.get(step.step, set())
        assert not any(killed.reads.of_step(step.step, pid) for pid in others)
    # The model raised when its worker had read, and before anybody committed the step.
    assert killed.reads.of_step(killed.raised_at) != once


def test_a_group_that_is_scaled_away_while_it_starts_never_trains_and_gives_its_room_back(
    killed: Killed,
) -> None:
    """The room is waited for in the story itself, while the job still runs."""
    assert killed.job.group_events(3, GroupState.STARTING)
    assert not killed.job.group_events(3, GroupState.MEMBER)
    assert killed.job.has_entered(0)


def test_the_reason_of_a_group_whose_code_raised_names_rank_step_and_error(killed: Killed) -> None:
    group = killed.job.status().groups[2]
    assert group.state == GroupState.LOST
    assert group.reason == f"Rank 1 failed at step {killed.raised_at}: {WORDS}"
    assert killed.job.entered[3].reason == f"Group 2 was lost: {group.reason}"


def test_an_error_in_one_group_does_not_disturb_the_others(killed: Killed) -> None:
    before, at = killed.job.steps[killed.raised_at - 1 : killed.raised_at + 1]
    assert (before.num_groups, at.num_groups) == (2, 1)
    assert killed.job.has_committed(killed.raised_at + 1)


def test_an_error_in_the_only_group_left_fails_the_job_with_that_error(killed: Killed) -> None:
    job = killed.job
    assert (job.status().state, job.returned) == (JobState.FAILED, JobState.FAILED)
    reason = job.states[-1].reason
    assert reason.startswith("No group is left, and the last one failed: Rank ")
    assert reason.endswith(f" failed at step {len(job.steps)}: {WORDS}")


def test_no_group_is_left_of_a_failed_job(killed: Killed) -> None:
    states = [group.state for group in killed.job.status().groups]
    assert states == [GroupState.LOST, GroupState.LOST, GroupState.LOST, GroupState.LEFT]


# Three groups are wanted and two needed, on two nodes; one node is lost, and another is added.


@dataclass(frozen=True)
class Crowded:
    job: RunningJob
    groups_at_start: list[GroupStatus]


@pytest.fixture(scope="module")
def crowded(cluster: LocalCluster, start_job: StartJob) -> Crowded:
    job = start_job(40, determinism="bitwise", groups={"minimum": 2, "wanted": 3})
    job.train_to(2)
    story = Crowded(job, job.status().groups)
    cluster.kill_node(job.node_of(1))
    job.control.allow(4)
    job.wait_until(lambda job: job.states[-1].state == JobState.WAITING, "a job that waits")
    cluster.add_node()
    job.train_to_the_end()
    return story


def test_a_cluster_too_small_for_all_groups_trains_with_those_that_fit(crowded: Crowded) -> None:
    assert crowded.job.steps[0].num_groups == 2
    states = sorted(group.state for group in crowded.groups_at_start)
    assert states == [GroupState.MEMBER, GroupState.MEMBER, GroupState.PLACING]


def test_below_its_minimum_a_job_waits_and_says_why(crowded: Crowded) -> None:
    job = crowded.job
    waiting = next(event for event in job.states if event.state == JobState.WAITING)
    lost = job.status().groups[1]
    assert waiting.reason == (
        f"1 partition group is ready, 2 needed. Group 1 was lost: {lost.reason}"
    )
    after = [event for event in job.events if event.sequence > waiting.sequence]
    resumed = next(event for event in after if isinstance(event, StateEvent))
    assert resumed.state == JobState.RUNNING
    steps = [event.sequence for event in after if isinstance(event, StepEvent)]
    assert min(steps) > resumed.sequence


def test_a_job_that_waits_goes_on_when_a_node_is_added(crowded: Crowded) -> None:
    job = crowded.job
    assert job.returned == JobState.FINISHED
    survivor, newcomer = job.entered[-1].groups
    assert (survivor, job.status().groups[1].state) == (0, GroupState.LOST)
    # Groups 2 and 3 both wait for room, and Ray chooses.
    assert newcomer in (2, 3)
    assert_losses_are_gold(job)


def test_with_bitwise_determinism_no_bit_depends_on_how_many_groups_there_were(
    killed: Killed, crowded: Crowded
) -> None:
    """The norm of a step's gradient depends on every parameter that the steps before have left."""
    beside = list(zip(killed.job.steps, crowded.job.steps, strict=False))
    assert {(2, 2), (1, 2)} <= {(one.num_groups, other.num_groups) for one, other in beside}
    norms = [(one.gradient_norm, other.gradient_norm) for one, other in beside]
    assert all(one == other for one, other in norms), norms


# A partition group of four workers, on nodes of two. One of its nodes is lost, and all states with
# it; another is added. Then the job is cancelled.

SAVED_EVERY = 3


@dataclass(frozen=True)
class Spanning:
    job: RunningJob
    groups: list[GroupStatus]
    """The one that was lost and the one that took its place, both while they trained."""


@pytest.fixture(scope="module")
def spanning(
    cluster: LocalCluster, start_job: StartJob, tmp_path_factory: pytest.TempPathFactory
) -> Spanning:
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    checkpoint = {"directory": folder, "interval_steps": SAVED_EVERY}
    job = start_job(20, partition_size=4, groups={"wanted": 1}, checkpoint=checkpoint)
    job.train_to(SAVED_EVERY + 1)
    job.wait_until(lambda job: saved(job) == [(SAVED_EVERY, "")], "a checkpoint")
    lost = job.status().groups[0]
    cluster.kill_node(lost.workers[2].node_id)
    job.wait_until(lambda job: job.group_events(0, GroupState.LOST), "the group's loss")
    cluster.add_node()
    job.train_to(SAVED_EVERY + 2)
    groups = [lost, job.status().groups[1]]
    job.cancel()
    job.train_until(lambda job: job.final, "the end of the cancelled job")
    job.ended()
    return Spanning(job, groups)


def saved(job: RunningJob) -> list[tuple[int, str]]:
    return [(e.step, e.error) for e in job.events if isinstance(e, CheckpointEvent)]


def test_a_partition_group_larger_than_a_node_takes_whole_nodes_by_rank(spanning: Spanning) -> None:
    for group in spanning.groups:
        nodes = [worker.node_id for worker in group.workers]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]


def test_the_loss_of_one_of_its_nodes_is_that_of_a_group_over_two(spanning: Spanning) -> None:
    lost, other = spanning.job.status().groups
    assert (lost.state, other.state) == (GroupState.LOST, GroupState.LEFT)
    assert lost.reason.endswith("is gone: its connection closed.")
    pids = [worker.pid for worker in spanning.groups[0].workers]
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), f"the end of {pids}")


def test_where_all_groups_are_lost_the_job_goes_on_from_its_checkpoint(spanning: Spanning) -> None:
    """The steps since then are done again, and each counts once."""
    job = spanning.job
    steps = [step.step for step in job.steps]
    assert steps == [*range(SAVED_EVERY + 2), *range(SAVED_EVERY, steps[-1] + 1)]
    gold = gold_losses(job.spec.training.steps)
    assert [s.loss for s in job.steps] == pytest.approx([gold[s] for s in steps], rel=1e-5)


def test_cancelling_ends_a_job_at_a_step_boundary(spanning: Spanning) -> None:
    job = spanning.job
    assert job.status().state == job.returned == JobState.CANCELLED
    assert job.states[-1].reason == "Its follower has seen enough."
    reads = Reads(job.control.folder, job.spec.training.steps, GLOBAL_BATCH_SIZE)
    assert reads.of_step(job.steps[-1].step + 1) == [], "a step was begun and not committed"
