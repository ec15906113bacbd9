"""A job whose steps the test holds and lets go."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, Self

import ray
from ray.util.state import list_actors

from benchmarks.harness.followed import FollowedJob, eventually
from mics_core.cluster.names import supervisor_name
from mics_core.cluster.runner import find_runner
from mics_core.spec import JobSpec
from mics_core.spec.status import GroupState, JobStatus
from tests.cluster.control import Control

__all__ = ["RunningJob", "eventually", "kill_runner", "place_of_supervisor"]


def place_of_supervisor(job_id: str) -> tuple[str, int]:
    """Return the node id and the process id of a job's supervisor; 0 while there is none."""
    actors = list_actors(filters=[("name", "=", supervisor_name(job_id))])
    places = [(actor["node_id"], actor["pid"]) for actor in actors if actor["state"] == "ALIVE"]
    return places[0] if places else ("", 0)


class RunningJob(FollowedJob):
    """A followed job, held at its steps by the control of its data.

    Args:
        spec: A job of `tests.cluster.jobs`.
        control: The control of its data.
        job_id: One that somebody else has started; without it this starts one.
        look: Called while its first groups train.
    """

    def __init__(
        self,
        spec: JobSpec,
        control: Control,
        job_id: str | None = None,
        *,
        look: Callable[[], object] | None = None,
    ):
        super().__init__(spec, job_id)
        self.control = control
        self._look = look

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.final is not None and raised[0] is None:
            # Whatever befell it: every sample of every committed step was used exactly once.
            samples, steps = self.final.samples, {step.step for step in self.steps}
            due = len(steps) * self.spec.training.global_batch_size
            assert (samples.due, samples.used, samples.repeated) == (due, due, 0)

    def train_to(self, step: int) -> None:
        """Let the job commit the steps up to `step`, and hold it there."""
        self.control.allow(step)
        self.wait_until(lambda job: job.has_committed(step), f"step {step}")
        look, self._look = self._look, None
        if look is not None:
            look()

    def train_until(self, happened: Callable[[Self], object], what: str) -> None:
        """Let the job train step by step until something happened; it is held after that step."""
        while not happened(self):
            step = self.control.allowed + 1
            assert step < self.spec.training.steps, f"{what} did not happen before the last step"
            self.control.allow(step)
            self.wait_until(
                lambda job, step=step: job.has_committed(step) or happened(job),
                f"step {step}, or {what},",
            )

    def train_to_the_end(self) -> JobStatus:
        """Let the job train as far as it will, and return its last status."""
        self.control.allow(self.spec.training.steps)
        return self.ended()


def kill_runner(job: RunningJob, group_id: int) -> list[int]:
    """Kill the actor that owns a group's run; return the processes that it takes with it."""
    runner = ray.get(find_runner(job.job_id, group_id).prepare.remote())
    pids = [runner, *job.pids(group_id)]
    os.kill(runner, signal.SIGKILL)
    job.wait_until(lambda job: job.group_events(group_id, GroupState.LOST), "the group's loss")
    return pids
