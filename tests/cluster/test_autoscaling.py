"""A job on a cluster whose nodes Ray's autoscaler adds and removes: it grows, shrinks, trains on.

Takes 40 to 80 s on two cores: two nodes and two groups start one after the other, and then each
node has to idle for 6 s before it is given back.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from benchmarks.harness.followed import FollowedJob, eventually
from mics_core.cluster.names import NAMESPACE
from mics_core.spec import load_job_spec
from mics_core.spec.status import GroupState
from tests.cluster.leftovers import Leftovers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "autoscaling"
DEADLINE_S = 120.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cluster that the documented command starts, this process connected to it."""
    leftovers = Leftovers()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = EXAMPLE / "ray_cluster.local.yaml"
    command = [sys.executable, "-m", "mics_core.cluster.autoscaling", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = re.match(r"Ray at (\S+), dashboard at (\S+)\. ", process.stdout.readline())
            assert told is not None
            ray.init(address=told[1], namespace=NAMESPACE, log_to_driver=False)
            try:
                yield
            finally:
                leftovers.look(told[1], told[2])
                ray.shutdown()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE_S)
    assert process.returncode == 0
    leftovers.check()


def living_workers() -> set[str]:
    """Ids of the living nodes that have room for workers."""
    return {
        node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
    }


@pytest.mark.usefixtures("cluster")
def test_a_job_brings_nodes_up_grows_without_a_stop_and_lets_them_go() -> None:
    assert living_workers() == set(), "no node is there before anything waits for room"
    with FollowedJob(load_job_spec(EXAMPLE / "job.yaml")) as job:
        job.wait_until(lambda job: job.has_entered(0), "the first group", DEADLINE_S)
        (first_node,) = living_workers()
        first = job.pids(0)

        job.scale(2)
        job.wait_until(
            lambda job: job.steps and job.steps[-1].num_groups == 2, "two groups", DEADLINE_S
        )
        assert len(living_workers()) == 2
        assert job.pids(0) == first
        assert job.node_of(1) != first_node

        job.scale(1)
        eventually(
            lambda: living_workers() == {first_node}, "the second node to be given back", DEADLINE_S
        )
        step = job.steps[-1].step
        job.wait_until(lambda job: job.has_committed(step + 3), "steps after that", DEADLINE_S)
        assert job.pids(0) == first
        assert job.steps[-1].num_groups == 1

        job.cancel()
        samples = job.ended().samples
    # Nothing of the job, nor of what it runs on, may keep a node that nobody needs.
    eventually(lambda: not living_workers(), "the first node to be given back", DEADLINE_S)
    assert [record.step for record in job.steps] == list(range(len(job.steps)))
    due = len(job.steps) * job.spec.training.global_batch_size
    assert (samples.due, samples.used, samples.repeated) == (due, due, 0)
    assert job.group_events(0, GroupState.LOST) == []
    assert job.group_events(1, GroupState.LOST) == []
