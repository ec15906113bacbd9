"""Runs a job on the connected cluster, in threads of this process, and follows it by its events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import ray
from pydantic import TypeAdapter

from mics_core.cluster.driver import new_job_id, run_job
from mics_core.cluster.reaching import SupervisorGoneError, SupervisorHandle, find_supervisor
from mics_core.spec import JobSpec
from mics_core.spec.changes import GroupsChange
from mics_core.spec.status import (
    GenerationEvent,
    GenerationRecord,
    GroupEvent,
    GroupState,
    JobEvent,
    JobState,
    JobStatus,
    RegroupEvent,
    RegroupPhases,
    StateEvent,
    StepEvent,
    StepRecord,
)

__all__ = ["DEADLINE_S", "FollowedJob", "MissingError", "eventually"]

DEADLINE_S = 240.0
_POLL_S = 2.0
_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)

_Found = TypeVar("_Found")


class MissingError(Exception):
    """Something that had to happen did not happen in time."""


def eventually(
    probe: Callable[[], _Found | None], what: str, deadline_s: float = DEADLINE_S
) -> _Found:
    """Return the first true answer of `probe`.

    Raises:
        MissingError: There was none in time.
    """
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.05)
    raise MissingError(f"{what} was missing after {deadline_s:g} s")


class FollowedJob:
    """A job, from its start on; leaving the context ends it whatever it does.

    Args:
        spec: The job.
        job_id: One that somebody else has started; without it this starts one.
    """

    def __init__(self, spec: JobSpec, job_id: str | None = None):
        self.spec = spec
        self.job_id = job_id or new_job_id(spec.name)
        self.events: list[JobEvent] = []
        self.final: JobStatus | None = None
        self.returned: JobState | None = None
        self._error: BaseException | None = None
        self._supervisor: SupervisorHandle | None = None
        self._news = threading.Condition()
        self._drives = job_id is None
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in ((self._drive, self._read) if self._drives else (self._read,))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.final is None and self._supervisor is not None:
            # Its groups see that it is gone for good, and end.
            with suppress(SupervisorGoneError):
                ray.kill(find_supervisor(self.job_id))
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), f"job {self.job_id} did not end"

    # What the job says.

    @property
    def steps(self) -> list[StepRecord]:
        """The committed steps, in the order of their events."""
        return [event.record for event in self.events if isinstance(event, StepEvent)]

    @property
    def entered(self) -> list[GenerationRecord]:
        """The generations that trained, in order."""
        generations = [e.generation for e in self.events if isinstance(e, GenerationEvent)]
        return [generation for generation in generations if generation.step is not None]

    @property
    def states(self) -> list[StateEvent]:
        """The changes of the job's state."""
        return [event for event in self.events if isinstance(event, StateEvent)]

    @property
    def regrouped(self) -> dict[int, RegroupPhases]:
        """What the changes of membership took, by generation."""
        changes = [event for event in self.events if isinstance(event, RegroupEvent)]
        return {change.generation: change.phases for change in changes}

    def group_events(self, group_id: int, state: GroupState) -> list[GroupEvent]:
        """Return the changes of a group to a state."""
        groups = [event for event in self.events if isinstance(event, GroupEvent)]
        return [e for e in groups if (e.group_id, e.state) == (group_id, state)]

    def status(self) -> JobStatus:
        """Ask for the live status; after the end, return the last one."""
        if self.final is not None:
            return self.final
        return JobStatus.model_validate(self._ask("status"))

    def pids(self, group_id: int) -> list[int]:
        """Return the worker processes of a group by rank."""
        return [worker.pid for worker in self.status().groups[group_id].workers]

    def node_of(self, group_id: int) -> str:
        """Return the node of a group's first worker."""
        return self.status().groups[group_id].workers[0].node_id

    # What one may ask of it.

    def scale(self, wanted: int) -> None:
        """Ask for another number of groups."""
        self._ask("scale", GroupsChange(wanted), "Its follower asks for it.")

    def cancel(self) -> None:
        """Stop the job."""
        self._ask("cancel", "Its follower has seen enough.")

    def wait_until(
        self, happened: Callable[[Self], object], what: str, deadline_s: float = DEADLINE_S
    ) -> None:
        """Wait until the events say that something happened.

        Raises:
            MissingError: It did not happen in time, or the job cannot be followed any more.
        """
        with self._news:
            self._news.wait_for(lambda: self._error or happened(self), deadline_s)
            if happened(self):
                return
            if self._error is not None:
                raise MissingError(f"{what} never came: {self._error!r}") from self._error
            last = "\n  ".join(str(event) for event in self.events[-12:])
            raise MissingError(f"{what} was missing after {deadline_s:g} s; last:\n  {last}")

    def ended(self) -> JobStatus:
        """Wait for the job's end and return its last status."""
        self.wait_until(lambda job: job.final, "the end of the job")
        self._threads[0].join(DEADLINE_S)
        assert self.returned is not None or not self._drives, "the driver did not return"
        assert self.final is not None
        return self.final

    def has_committed(self, step: int) -> bool:
        """Whether a step was committed."""
        return any(record.step == step for record in self.steps)

    def has_entered(self, *groups: int) -> bool:
        """Whether the newest generation that trains has these groups."""
        return bool(self.entered) and self.entered[-1].groups == list(groups)

    # The threads.

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._news:
                self._error = self._error or error
                self._news.notify_all()

    def _drive(self) -> None:
        self.returned = run_job(self.job_id, self.spec)

    def _read(self) -> None:
        self._supervisor = eventually(self._find, f"the supervisor of job {self.job_id}")
        while self.final is None:
            after = len(self.events)
            fresh = self._ask("events", after, _POLL_S)
            events = [_EVENT.validate_python(value) for value in fresh]
            ends = any(isinstance(event, StateEvent) and event.state.is_final for event in events)
            final = self.status() if ends else None
            with self._news:
                self.events += events
                self.final = final
                self._news.notify_all()
        # Asking beyond the last event tells the supervisor that it was read.
        with suppress(SupervisorGoneError):
            self._ask("events", len(self.events), 0.0)

    def _ask(self, method: str, *arguments: object) -> Any:
        assert self._supervisor is not None, f"job {self.job_id} has not begun"
        return self._supervisor.ask(method, *arguments, timeout_s=DEADLINE_S)

    def _find(self) -> SupervisorHandle | None:
        try:
            return SupervisorHandle(self.job_id)
        except SupervisorGoneError:
            if self._error is not None:
                raise self._error from None
            return None
