"""What a job does when workers, groups and nodes come and go, each seen through its events."""

from __future__ import annotations

import os
import re
import signal

import psutil
import pytest

from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState, JobState, StateEvent, StepEvent
from tests.cluster.conftest import StartJob
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, gold_losses
from tests.cluster.recording_data import Reads
from tests.cluster.running import RunningJob, eventually

pytestmark = pytest.mark.cluster

NUM_NODES = 2
ONCE = list(range(GLOBAL_BATCH_SIZE))


def assert_losses_are_gold(job: RunningJob) -> None:
    """The committed steps have the losses of one plain process, none is missing or repeated."""
    steps = job.steps
    assert [step.step for step in steps] == list(range(len(steps)))
    gold = gold_losses(job.spec, len(steps))
    assert [step.loss for step in steps] == pytest.approx(gold, rel=1e-5)


class TestAWorkerIsKilled:
    """One worker of group 1 gets SIGKILL; later the job is scaled down, and cancelled."""

    killed_at = 3

    @pytest.fixture(scope="class")
    def job(self, start_job: StartJob) -> RunningJob:
        job = start_job(40)
        job.train_to(self.killed_at - 1)
        job.pids_at_start = {group: job.pids(group) for group in (0, 1)}
        os.kill(job.pids(1)[1], signal.SIGKILL)
        job.train_to(self.killed_at)
        job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
        job.train_until(lambda job: job.has_entered(0, 2), "the entry of the group in its place")
        job.train_to(job.control.allowed + 2)
        job.scale(1)
        job.train_until(lambda job: job.group_events(2, GroupState.LEFT), "the end of group 2")
        job.train_to(job.control.allowed + 1)
        job.cancel()
        job.train_until(lambda job: job.final, "the end of the cancelled job")
        return job

    def test_its_group_is_lost_as_a_whole_and_says_why(self, job: RunningJob) -> None:
        group = job.status().groups[1]
        assert group.state == GroupState.LOST
        lost_peer = rf"Rank 0 lost a worker of its group at step {self.killed_at}: .+"
        lost_run = r"Its run failed: .+"
        assert re.fullmatch(f"{lost_peer}|{lost_run}", group.reason)
        eventually(
            lambda: not any(psutil.pid_exists(pid) for pid in job.pids(1)),
            f"the end of the processes {job.pids(1)} of the lost group",
        )

    def test_the_survivors_commit_the_step_without_it(self, job: RunningJob) -> None:
        assert [step.num_groups for step in job.steps[: self.killed_at + 1]] == [2, 2, 2, 1]

    def test_another_group_replaces_it(self, job: RunningJob) -> None:
        lost = job.status().groups[1].reason
        placing, *_ = job.group_events(2, GroupState.PLACING)
        assert placing.reason == f"It replaces group 1: {lost}"
        reasons = [record.reason for record in job.entered]
        assert reasons[1:3] == [f"Group 1 was lost: {lost}", "Group 2 joins."]

    def test_the_survivors_are_not_restarted(self, job: RunningJob) -> None:
        assert job.pids(0) == job.pids_at_start[0]

    def test_the_losses_are_those_of_one_undisturbed_process(self, job: RunningJob) -> None:
        assert_losses_are_gold(job)

    def test_scaling_down_lets_the_youngest_group_leave(self, job: RunningJob) -> None:
        assert job.entered[-1].groups == [0]
        group = job.status().groups[2]
        assert group.state == GroupState.LEFT
        assert group.reason == "1 partition group is wanted: The test asks for it."

    def test_nobody_redoes_a_step_for_a_join_or_a_leave(self, job: RunningJob) -> None:
        reads = Reads(job.control.folder, job.spec.training.steps, GLOBAL_BATCH_SIZE)
        repeated = [step.step for step in job.steps if reads.of_step(step.step) != ONCE]
        assert repeated == [self.killed_at]

    def test_cancelling_ends_the_job_at_a_step_boundary(self, job: RunningJob) -> None:
        assert (job.status().state, job.returned) == (JobState.CANCELLED, JobState.CANCELLED)
        assert job.states[-1].reason == "The test has seen enough."
        reads = Reads(job.control.folder, job.spec.training.steps, GLOBAL_BATCH_SIZE)
        assert reads.of_step(len(job.steps)) == [], "a step was begun and not committed"

    def test_no_group_is_left_of_a_cancelled_job(self, job: RunningJob) -> None:
        states = [group.state for group in job.status().groups]
        assert states == [GroupState.LEFT, GroupState.LOST, GroupState.LEFT]


class TestAUsersModelRaises:
    """First in one worker of group 1, which is replaced; later in every worker."""

    failed_at = 2
    words = "RuntimeError: the model was told to fail"

    @pytest.fixture(scope="class")
    def job(self, start_job: StartJob) -> RunningJob:
        job = start_job(40, model_can_fail=True)
        job.train_to(self.failed_at - 1)
        job.control.fail_models(job.pids(1)[1])
        job.train_to(self.failed_at)
        job.wait_until(lambda job: job.group_events(2, GroupState.READY), "a group in its place")
        job.train_until(lambda job: job.has_entered(0, 2), "the entry of the group in its place")
        job.control.fail_models()
        job.train_to_the_end()
        return job

    def test_in_one_group_the_reason_names_rank_step_and_error(self, job: RunningJob) -> None:
        lost = job.status().groups[1]
        assert lost.state == GroupState.LOST
        assert lost.reason == f"Rank 1 failed at step {self.failed_at}: {self.words}"
        assert job.entered[1].reason == f"Group 1 was lost: {lost.reason}"

    def test_in_one_group_the_others_train_on(self, job: RunningJob) -> None:
        assert job.steps[self.failed_at].num_groups == 1
        assert_losses_are_gold(job)

    def test_in_every_group_the_job_fails_with_the_error(self, job: RunningJob) -> None:
        assert (job.status().state, job.returned) == (JobState.FAILED, JobState.FAILED)
        reason = job.states[-1].reason
        assert reason.startswith("No group is left, and the last one failed: Rank ")
        assert reason.endswith(f" failed at step {len(job.steps)}: {self.words}")


class TestTheClusterIsTooSmall:
    """Three groups are wanted and two needed, on two nodes; one is lost, and another is added."""

    @pytest.fixture(scope="class")
    def job(self, cluster: LocalCluster, start_job: StartJob) -> RunningJob:
        job = start_job(12, groups={"minimum": 2, "wanted": 3})
        job.train_to(2)
        job.groups_at_start = job.status().groups
        cluster.kill_node(job.node_of(1))
        job.control.allow(4)
        job.wait_until(lambda job: job.states[-1].state == JobState.WAITING, "a job that waits")
        cluster.add_node()
        job.train_to_the_end()
        return job

    def test_it_begins_with_the_groups_that_fit(self, job: RunningJob) -> None:
        assert job.steps[0].num_groups == 2
        states = [group.state for group in job.groups_at_start]
        assert states == [GroupState.MEMBER, GroupState.MEMBER, GroupState.PLACING]

    def test_below_the_minimum_it_waits_and_says_why(self, job: RunningJob) -> None:
        waiting = next(event for event in job.states if event.state == JobState.WAITING)
        assert waiting.reason == (
            "1 partition group is ready, 2 needed."
            f" Group 1 was lost: {job.status().groups[1].reason}"
        )
        after = [event for event in job.events if event.sequence > waiting.sequence]
        resumed = next(event for event in after if isinstance(event, StateEvent))
        assert resumed.state == JobState.RUNNING
        steps = [event.sequence for event in after if isinstance(event, StepEvent)]
        assert all(sequence > resumed.sequence for sequence in steps)

    def test_with_a_new_node_it_trains_to_the_end(self, job: RunningJob) -> None:
        assert job.returned == JobState.FINISHED
        assert job.entered[-1].groups == [0, 2]
        assert_losses_are_gold(job)


class TestAPartitionGroupSpansNodes:
    """Four workers on nodes of two."""

    @pytest.fixture(scope="class")
    def job(self, start_job: StartJob) -> RunningJob:
        job = start_job(4, partition_size=4, groups={"wanted": 1})
        job.train_to_the_end()
        return job

    def test_it_takes_whole_nodes_in_the_order_of_ranks(self, job: RunningJob) -> None:
        nodes = [worker.node_id for worker in job.status().groups[0].workers]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]

    def test_the_losses_are_those_of_one_process(self, job: RunningJob) -> None:
        assert job.returned == JobState.FINISHED
        assert len(job.steps) == 4
        assert_losses_are_gold(job)
