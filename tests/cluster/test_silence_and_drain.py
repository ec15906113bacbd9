"""A stopped worker, a drained node, a killed runner: found and replaced while others train.

`tests/faults` stops whole groups too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import psutil
import pytest

from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState, JobStatus
from tests.cluster.conftest import StartJob
from tests.cluster.jobs import gold_losses
from tests.cluster.running import RunningJob, eventually, kill_runner

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NUM_NODES = 3
SILENCE_S = 5.0
LIMITING_STEPS = 12
"""After so many the limit has forgotten the steps that the test held for long."""


@dataclass(frozen=True)
class Story:
    job: RunningJob
    status: JobStatus
    pids_of_survivor: list[int]
    one_stopped: list[int]
    found_within_s: float
    stopped_at: int
    drained_at: int
    runner_killed_at: int
    pids_of_runner: list[int]


@pytest.fixture(scope="module")
def story(cluster: LocalCluster, start_job: StartJob) -> Story:
    """One worker of group 1 is stopped, the node of group 2 drained, group 3's runner killed."""
    job = start_job(100, groups={"minimum": 1, "wanted": 2, "silence_s": SILENCE_S})
    job.train_to(4)  # so that the limits follow the steps
    survivors = job.pids(0)
    one_stopped = job.pids(1)[1:]
    found_within_s, stopped_at = stop(job, one_stopped)
    replaced(job, 2)
    drained_at = job.control.allowed
    drain(cluster, job.node_of(2))
    job.train_until(lambda job: job.has_entered(0), "the generation without the drained group")
    replaced(job, 3)
    pids_of_runner = kill_runner(job, 3)
    runner_killed_at = job.control.allowed + 1
    job.train_to(runner_killed_at)
    job.cancel()
    job.train_until(lambda job: job.final, "the end of the cancelled job")
    return Story(
        job,
        job.ended(),
        survivors,
        one_stopped,
        found_within_s,
        stopped_at,
        drained_at,
        runner_killed_at,
        pids_of_runner,
    )


def stop(job: RunningJob, pids: list[int]) -> tuple[float, int]:
    """Stop processes that wait for their samples; return when a step was committed without them."""
    job.train_to(job.control.allowed + LIMITING_STEPS)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    begin, step = time.monotonic(), job.control.allowed + 1
    job.control.allow(step)
    job.wait_until(lambda job: job.has_committed(step), "the step without the stopped ones")
    return time.monotonic() - begin, step


def drain(cluster: LocalCluster, node_id: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    command += ["--address", cluster.address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    command += ["--deadline-remaining-seconds", "600"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def replaced(job: RunningJob, group_id: int) -> None:
    job.wait_until(lambda job: job.group_events(group_id, GroupState.READY), "a group in its place")
    job.train_until(
        lambda job: job.group_events(group_id, GroupState.MEMBER), "the entry of that group"
    )
    job.train_to(job.control.allowed + 1)


def test_what_makes_no_progress_is_found_in_the_configured_time(story: Story) -> None:
    assert SILENCE_S / 2 < story.found_within_s < 2 * SILENCE_S + 4.0
    assert story.job.steps[story.stopped_at].num_groups == 1


def test_the_reason_says_who_was_silent(story: Story) -> None:
    group = story.status.groups[1]
    assert group.state == GroupState.LOST
    assert f"at step {story.stopped_at}" in group.reason
    assert "missing ranks [1]" in group.reason


def test_a_drained_node_ends_when_its_group_has_left(cluster: LocalCluster, story: Story) -> None:
    # Ray ends it as soon as nothing is there any more, so nothing of ours may stay.
    node_id = story.status.groups[2].workers[0].node_id
    eventually(lambda: node_id not in cluster.node_ids, "the end of the drained node", 60.0)


def test_a_group_on_a_drained_node_leaves_and_is_replaced_at_once(story: Story) -> None:
    group = story.status.groups[2]
    assert group.state == GroupState.LEFT
    assert group.reason.startswith(f"Node {group.workers[0].node_id[:8]} is being drained and has ")
    placing = story.job.group_events(3, GroupState.PLACING)[0]
    assert placing.reason == f"It replaces group 2: {group.reason}"
    assert story.status.groups[3].workers[0].node_id != group.workers[0].node_id
    # Nobody redid anything: it left at a step boundary.
    entered = [g for g in story.job.entered if g.groups == [0] and g.step > story.drained_at]
    assert entered[0].reason == f"Group 2 leaves: {group.reason}"


def test_a_killed_runner_takes_its_group_with_it_and_nobody_else(story: Story) -> None:
    lost = story.status.groups[3]
    assert lost.state == GroupState.LOST
    on_node = f"on node {lost.workers[0].node_id[:8]}"
    assert lost.reason == f"Its runner {on_node} died: the process or the node is gone."
    before, at = story.job.steps[story.runner_killed_at - 1 : story.runner_killed_at + 1]
    assert (before.num_groups, at.num_groups) == (2, 1)
    assert story.job.has_entered(0)
    for pid in story.pids_of_runner:
        eventually(lambda pid=pid: not psutil.pid_exists(pid), f"the end of process {pid}")


def test_the_survivors_train_on_as_one_process_would(story: Story) -> None:
    steps = story.job.steps
    assert [worker.pid for worker in story.status.groups[0].workers] == story.pids_of_survivor
    assert [step.step for step in steps] == list(range(len(steps)))
    gold = gold_losses(story.job.spec.training.steps)[: len(steps)]
    assert [step.loss for step in steps] == pytest.approx(gold, rel=1e-5)


def test_nothing_is_left_of_the_stopped_processes(story: Story) -> None:
    for pid in story.one_stopped:
        eventually(lambda pid=pid: not psutil.pid_exists(pid), f"the end of process {pid}")
