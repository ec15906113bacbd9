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
from mics_core.spec.status import GroupState, GroupStatus, JobState, StateEvent, StepEvent
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


# A worker is killed; later the job is scaled down, and cancelled.


@dataclass(frozen=True)
class Killed:
    job: RunningJob
    killed_at: int
    pids_of_survivor: list[int]

    @property
    def reads(self) -> Reads:
        return Reads(self.job.control.folder, self.job.spec.training.steps, GLOBAL_BATCH_SIZE)


@pytest.fixture(scope="module")
def killed(start_job: StartJob) -> Killed:
    """One worker of group 1 gets SIGKILL; group 2 replaces the group, and is scaled away again.

    So is group 3, while Ray Train starts it.
    """
    job = start_job(40, determinism="bitwise")
    job.train_to(2)
    story = Killed(job, killed_at=3, pids_of_survivor=job.pids(0))
    os.kill(job.pids(1)[1], signal.SIGKILL)
    job.train_to(story.killed_at)
    job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
    job.train_until(lambda job: job.has_entered(0, 2), "the entry of the group in its place")
    job.train_to(job.control.allowed + 2)
    job.scale(1)
    job.train_until(lambda job: job.group_events(2, GroupState.LEFT), "the end of group 2")
    job.train_to(job.control.allowed + 1)
    job.scale(2)
    eventually(lambda: num_rooms_of_runs() == 2, "the room of group 3's run")
    job.scale(1)
    job.wait_until(lambda job: job.group_events(3, GroupState.LEFT), "the end of group 3")
    eventually(lambda: ray.available_resources().get("CPU") == 2, "the room that group 3 gave back")
    job.cancel()
    job.train_until(lambda job: job.final, "the end of the cancelled job")
    job.ended()
    return story


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


def test_a_loss_a_join_and_a_leave_change_no_loss_value(killed: Killed) -> None:
    assert_losses_are_gold(killed.job)


def test_with_bitwise_determinism_a_loss_a_join_and_a_leave_change_no_bit(
    killed: Killed, start_job: StartJob
) -> None:
    """The norm of a step's gradient depends on every parameter that the steps before have left."""
    undisturbed = start_job(40, determinism="bitwise", groups={"wanted": 1})
    undisturbed.train_to_the_end()
    norms = [step.gradient_norm for step in killed.job.steps]
    assert {step.num_groups for step in killed.job.steps} == {1, 2}
    assert norms == [step.gradient_norm for step in undisturbed.steps][: len(norms)]


def test_scaling_down_lets_the_youngest_group_leave(killed: Killed) -> None:
    assert killed.job.entered[-1].groups == [0]
    group = killed.job.status().groups[2]
    assert group.state == GroupState.LEFT
    assert group.reason == "1 partition group is wanted: Its follower asks for it."


def test_nobody_redoes_a_step_for_a_join_or_a_leave(killed: Killed) -> None:
    once = list(range(GLOBAL_BATCH_SIZE))
    repeated = [s.step for s in killed.job.steps if killed.reads.of_step(s.step) != once]
    assert repeated == [killed.killed_at]


def test_a_group_that_is_scaled_away_while_it_starts_never_trains_and_gives_its_room_back(
    killed: Killed,
) -> None:
    """The room is waited for in the story itself, while the job still runs."""
    assert killed.job.group_events(3, GroupState.STARTING)
    assert not killed.job.group_events(3, GroupState.MEMBER)
    assert killed.job.has_entered(0)


def test_cancelling_ends_a_job_at_a_step_boundary(killed: Killed) -> None:
    job = killed.job
    assert (job.status().state, job.returned) == (JobState.CANCELLED, JobState.CANCELLED)
    assert job.states[-1].reason == "Its follower has seen enough."
    assert killed.reads.of_step(len(job.steps)) == [], "a step was begun and not committed"


def test_no_group_is_left_of_a_cancelled_job(killed: Killed) -> None:
    states = [group.state for group in killed.job.status().groups]
    assert states == [GroupState.LEFT, GroupState.LOST, GroupState.LEFT, GroupState.LEFT]


# A user's model raises: in one worker of group 1, which is replaced; later in every worker.

RAISED_AT = 2
WORDS = "RuntimeError: the model was told to fail"


@pytest.fixture(scope="module")
def raising(start_job: StartJob) -> RunningJob:
    job = start_job(40)
    job.train_to(RAISED_AT - 1)
    job.control.fail_models(job.pids(1)[1])
    job.train_to(RAISED_AT)
    job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
    job.train_until(lambda job: job.has_entered(0, 2), "the entry of the group in its place")
    job.control.fail_models()
    job.train_to_the_end()
    return job


def test_the_reason_of_a_group_whose_code_raised_names_rank_step_and_error(
    raising: RunningJob,
) -> None:
    group = raising.status().groups[1]
    assert group.state == GroupState.LOST
    assert group.reason == f"Rank 1 failed at step {RAISED_AT}: {WORDS}"
    assert raising.entered[1].reason == f"Group 1 was lost: {group.reason}"


def test_an_error_in_one_group_does_not_disturb_the_others(raising: RunningJob) -> None:
    assert raising.steps[RAISED_AT].num_groups == 1
    assert_losses_are_gold(raising)


def test_an_error_in_every_group_fails_the_job_with_that_error(raising: RunningJob) -> None:
    assert (raising.status().state, raising.returned) == (JobState.FAILED, JobState.FAILED)
    reason = raising.states[-1].reason
    assert reason.startswith("No group is left, and the last one failed: Rank ")
    assert reason.endswith(f" failed at step {len(raising.steps)}: {WORDS}")


# Three groups are wanted and two needed, on two nodes; one node is lost, and another is added.


@dataclass(frozen=True)
class Crowded:
    job: RunningJob
    groups_at_start: list[GroupStatus]


@pytest.fixture(scope="module")
def crowded(cluster: LocalCluster, start_job: StartJob) -> Crowded:
    job = start_job(12, groups={"minimum": 2, "wanted": 3})
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


# A partition group of four workers, on nodes of two.


@pytest.fixture(scope="module")
def spanning(start_job: StartJob) -> RunningJob:
    job = start_job(4, partition_size=4, groups={"wanted": 1})
    job.train_to_the_end()
    return job


def test_a_partition_group_larger_than_a_node_takes_whole_nodes_by_rank(
    spanning: RunningJob,
) -> None:
    nodes = [worker.node_id for worker in spanning.status().groups[0].workers]
    assert nodes[0] == nodes[1] != nodes[2] == nodes[3]


def test_a_partition_group_over_two_nodes_has_the_losses_of_one_process(
    spanning: RunningJob,
) -> None:
    assert spanning.returned == JobState.FINISHED
    assert len(spanning.steps) == 4
    assert_losses_are_gold(spanning)
