"""A job of ours on a cluster of simulated nodes, followed by its events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import ray
from pydantic import TypeAdapter

from mics_core.cluster.driver import new_job_id, run_job
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.names import NAMESPACE, supervisor_name
from mics_core.spec import JobSpec
from mics_core.spec.status import (
    GenerationEvent,
    GenerationRecord,
    JobEvent,
    JobStatus,
    StateEvent,
    StepEvent,
    StepRecord,
)

__all__ = ["FollowedJob", "MissingError"]

_DEADLINE_S = 240.0
_POLL_S = 2.0
_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)


class MissingError(RuntimeError):
    """Something that had to happen did not happen in time."""


class FollowedJob:
    """A job, from its start to the end of the context.

    Args:
        cluster: The nodes; this process is connected to them.
        spec: The job.
    """

    def __init__(self, cluster: LocalCluster, spec: JobSpec):
        self.cluster = cluster
        self.job_id = new_job_id(spec.name)
        self.steps: list[StepRecord] = []
        self.generations: list[GenerationRecord] = []
        self._spec = spec
        self._supervisor: Any = None
        self._news = threading.Condition()
        self._has_ended = False
        self._error: BaseException | None = None
        self._driver = threading.Thread(target=self._drive, name="driver", daemon=True)
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)

    def __enter__(self) -> Self:
        self._driver.start()
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._supervisor is not None and not self._has_ended:
            ray.get(self._supervisor.cancel.remote("The benchmark is done."))
        self._reader.join(_DEADLINE_S)
        self._driver.join(_DEADLINE_S)

    def status(self) -> JobStatus:
        """Ask for the live status."""
        return JobStatus.model_validate(ray.get(self._supervisor.status.remote()))

    def scale(self, wanted: int) -> None:
        """Ask for another number of partition groups."""
        ray.get(self._supervisor.scale.remote(wanted, "The benchmark asks for it."))

    def wait_until(self, happened: Callable[[], object], what: str) -> None:
        """Wait until the events say that something happened.

        Raises:
            MissingError: It did not happen in time, or the job ended.
        """
        with self._news:
            self._news.wait_for(lambda: happened() or self._has_ended, _DEADLINE_S)
            if not happened():
                last = self.status().reason if self._supervisor is not None else self._error
                raise MissingError(f"{what} was missing after {_DEADLINE_S:g} s: {last}")

    def wait_for_steps(self, number: int) -> None:
        """Wait for some more committed steps."""
        goal = len(self.steps) + number
        self.wait_until(lambda: len(self.steps) >= goal, f"step {goal}")

    def _drive(self) -> None:
        try:
            run_job(self.job_id, self._spec)
        except BaseException as error:
            self._error = error
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def _read(self) -> None:
        after = 0
        while not self._has_ended:
            if self._supervisor is None:
                self._supervisor = self._find()
                continue
            fresh = ray.get(self._supervisor.events.remote(after, _POLL_S))
            events = [_EVENT.validate_python(value) for value in fresh]
            after += len(events)
            with self._news:
                for event in events:
                    self._take(event)
                self._news.notify_all()

    def _take(self, event: JobEvent) -> None:
        match event:
            case StepEvent():
                self.steps.append(event.record)
            case GenerationEvent():
                self.generations.append(event.generation)
            case StateEvent():
                self._has_ended = event.state.is_final

    def _find(self) -> Any:
        try:
            return ray.get_actor(supervisor_name(self.job_id), namespace=NAMESPACE)
        except ValueError:
            time.sleep(0.1)  # nothing tells when an actor's name appears
            return None
