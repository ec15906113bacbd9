"""A run outlives its supervisor and its driver: both are killed, and no training step is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from ray.experimental import internal_kv

from mics_core.cluster.link import _FLUSH_S
from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState, JobState
from tests.cluster.conftest import StartJob
from tests.cluster.control import Control
from tests.cluster.jobs import GLOBAL_BATCH_SIZE, gold_losses, recorded_job
from tests.cluster.recording_data import Reads
from tests.cluster.running import RunningJob, eventually, place_of_supervisor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NUM_NODES = 2
STEPS = 60


def pid_of_supervisor(job_id: str) -> int:
    return place_of_supervisor(job_id)[1]


def kill_supervisor(job: RunningJob) -> None:
    """Kill it, and wait until another has taken its place."""
    pid = pid_of_supervisor(job.job_id)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid_of_supervisor(job.job_id) not in (0, pid), "another supervisor")


def train_without_supervisor(job: RunningJob, step: int) -> None:
    """Stop it, and wait until the workers have committed the steps before `step` all the same.

    Who knows is the user's data: a step's samples are read once the one before is committed.
    """
    os.kill(pid_of_supervisor(job.job_id), signal.SIGSTOP)
    job.control.allow(step)
    eventually(
        lambda: (
            Reads(job.control.folder, STEPS, GLOBAL_BATCH_SIZE).of_step(step)
            == list(range(GLOBAL_BATCH_SIZE))
        ),
        f"the reads of step {step}",
        60.0,
    )


def end_without_supervisor(job: RunningJob) -> None:
    """Let the run end while each supervisor is killed that Ray starts, until nobody would wait."""

    def kill() -> None:
        if pid := pid_of_supervisor(job.job_id):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def is_read() -> bool:
        kill()
        reads = Reads(job.control.folder, STEPS, GLOBAL_BATCH_SIZE)
        return reads.of_step(STEPS - 1) == list(range(GLOBAL_BATCH_SIZE))

    kill()
    job.control.allow(STEPS)
    eventually(is_read, "the reads of the last step", 60.0)
    until = time.monotonic() + _FLUSH_S + 2.0
    while time.monotonic() < until:
        kill()
    job.ended()


@contextmanager
def stopped_head() -> Iterator[None]:
    """Ray's head does nothing inside: it neither answers nor goes away."""
    [head] = [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]
    head.suspend()
    try:
        yield
    finally:
        head.resume()


# The supervisor is killed while the groups train, while one of them is lost, and while one starts;
# then Ray's head stands still while a group is lost; and there is none when the run ends.


@dataclass(frozen=True)
class Survived:
    job: RunningJob
    pids: list[int]
    nodes_of_supervisors: list[str]


@pytest.fixture(scope="module")
def survived(start_job: StartJob) -> Survived:
    job = start_job(STEPS, partition_size=1)
    job.train_to(2)
    story = Survived(job, job.pids(0), [place_of_supervisor(job.job_id)[0]])
    train_without_supervisor(job, 6)
    os.kill(pid_of_supervisor(job.job_id), signal.SIGKILL)
    job.train_to(10)  # whether there is one or not
    job.scale(3)
    job.wait_until(lambda job: job.group_events(2, GroupState.STARTING), "nodes for group 2")
    kill_supervisor(job)
    story.nodes_of_supervisors.append(place_of_supervisor(job.job_id)[0])
    job.wait_until(lambda job: job.group_events(2, GroupState.READY), "the workers of group 2")
    job.train_until(lambda job: job.has_entered(0, 1, 2), "the entry of group 2")
    # Now a loss that nobody hears of at first.
    [victim] = job.pids(1)
    os.kill(pid_of_supervisor(job.job_id), signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)
    job.train_to(job.control.allowed + 2)
    job.wait_until(lambda job: job.group_events(3, GroupState.READY), "a group in its place")
    story.nodes_of_supervisors.append(place_of_supervisor(job.job_id)[0])
    job.train_until(lambda job: job.has_entered(0, 2, 3), "the entry of group 3")
    with stopped_head():  # and another group is asked for, of whoever does not answer
        os.kill(*job.pids(2), signal.SIGKILL)
        job.train_to(job.control.allowed + 3)
    job.scale(2)  # nobody is to come in its place
    end_without_supervisor(job)
    return story


def test_supervisors_live_where_the_driver_is_and_not_on_nodes_that_come_and_go(
    survived: Survived,
) -> None:
    assert survived.nodes_of_supervisors == [ray.get_runtime_context().get_node_id()] * 3


def test_the_groups_of_a_killed_supervisor_are_not_restarted(survived: Survived) -> None:
    assert survived.job.pids(0) == survived.pids
    lost = [group.group_id for group in survived.job.status().groups if group.state == "lost"]
    assert lost == [1, 2]


def test_no_step_and_no_sample_is_lost_or_repeated_with_the_supervisor(survived: Survived) -> None:
    job = survived.job
    assert job.status().state == JobState.FINISHED
    assert [step.step for step in job.steps] == list(range(STEPS))
    assert [step.loss for step in job.steps] == pytest.approx(gold_losses(STEPS), rel=1e-5)
    samples = job.status().samples
    assert (samples.used, samples.repeated) == (samples.due, 0)
    assert samples.due == STEPS * job.spec.training.global_batch_size


def test_watchers_go_on_without_a_gap(survived: Survived) -> None:
    sequences = [event.sequence for event in survived.job.events]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_supervisor_ends_after_the_run_and_forgets_it(survived: Survived) -> None:
    job_id = survived.job.job_id
    eventually(lambda: not pid_of_supervisor(job_id), "the end of the supervisor")
    (left,) = internal_kv._internal_kv_list(f"{job_id}/", namespace="mics")
    assert left.endswith(b"/ended")


# The driver.


@contextmanager
def driver(cluster: LocalCluster, folder: Path, job_id: str) -> Iterator[subprocess.Popen[str]]:
    path = folder / "job.yaml"
    job = recorded_job(folder, 30, partition_size=1, groups={"wanted": 1})
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    program = [sys.executable, "-m", "mics_core.cluster.driver", str(path), "--job-id", job_id]
    process = subprocess.Popen(
        [*program, "--address", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_driver_leaves_its_job_running(cluster: LocalCluster, tmp_path: Path) -> None:
    control = Control(tmp_path)
    with driver(cluster, tmp_path, "orphan") as process:
        control.allow(1)
        assert process.stdout is not None
        assert any("step 0 " in line for line in process.stdout)
        process.kill()
    with RunningJob(recorded_job(tmp_path, 30, partition_size=1), control, "orphan") as job:
        job.wait_until(lambda job: job.has_committed(1), "a step")
        pids = job.pids(0)
        job.train_to(20)  # long after Ray has noticed that the driver is gone
        assert job.pids(0) == pids
        job.train_to_the_end()
    assert [step.loss for step in job.steps] == pytest.approx(gold_losses(30), rel=1e-5)
    eventually(lambda: not any(map(psutil.pid_exists, pids)), "the end of the workers")


def test_a_driver_that_is_asked_to_end_cancels_its_job(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    control = Control(tmp_path)
    with driver(cluster, tmp_path, "stopped") as process:
        control.allow(1)
        assert process.stdout is not None
        assert any("step 0 " in line for line in process.stdout)
        process.terminate()
        control.allow(30)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "terminated: cancelling the job at the next step boundary" in said
    assert "job is cancelled: The driver was terminated." in said
