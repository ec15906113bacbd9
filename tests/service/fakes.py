"""A cluster in memory that plays jobs behind the service's door to Ray.

It keeps the promises of `service.gateway.ClusterGateway` as Ray does: long polls, supervisors that
come late or die, drivers that fail before there is a supervisor, a cluster that cannot be reached.
Tests steer it from their own thread while the service runs in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

from mics_core.errors import (
    ClusterError,
    JobConflictError,
    JobNotFoundError,
    LayoutError,
    Problem,
)
from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.changes import Continuation, GroupsChange
from mics_core.spec.last_words import EndedJob, LastWords
from mics_core.spec.nodes import ClusterView, DemandView, LogSource, NodeView
from mics_core.spec.status import (
    DriverState,
    DriverStatus,
    GenerationEvent,
    GenerationRecord,
    GroupEvent,
    GroupState,
    GroupStatus,
    JobEvent,
    JobState,
    JobStatus,
    SampleCount,
    ScaleEvent,
    StateEvent,
    StepEvent,
    StepRecord,
)

TOKENS = 1024


def specification(**changes: Any) -> dict[str, Any]:
    """A small valid specification; its data needs no file."""
    return {
        "name": "Tiny GPT-2",
        "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 2},
        "data": {"kind": "callable", "callable": "examples.data:build"},
        "training": {
            "sequence_length": 8,
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "steps": 10,
        },
        "partition_size": 2,
        "groups": {"minimum": 1, "wanted": 2, "maximum": 4},
        **changes,
    }


class FakeSupervisor:
    """The supervisor of one job: the test calls its verbs, the service its questions."""

    def __init__(self, job_id: str, spec: JobSpec, after: int = 0):
        self._first = after
        self.job_id = job_id
        self.spec = spec
        self.created = time.time()
        self.state = JobState.PENDING
        self.reason = "Its partition groups are being placed."
        self.wanted = spec.groups.wanted
        self.history: list[JobEvent] = []
        self.steps: list[StepRecord] = []
        self.generations: list[GenerationRecord] = []
        self.is_cancelling = False
        self._lock = threading.RLock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def set_state(self, state: JobState, reason: str) -> None:
        with self._lock:
            self.state, self.reason = state, reason
            self._tell(StateEvent, state=state, reason=reason)

    def train(self, num_steps: int, *, loss: float = 2.0) -> None:
        """Commit steps; the first ones also form the generation and start the job."""
        with self._lock:
            if self.state is not JobState.RUNNING:
                self.set_state(JobState.RUNNING, "All wanted partition groups train.")
                self.enter_generation(list(range(self.wanted)))
            for _ in range(num_steps):
                record = StepRecord(
                    step=len(self.steps),
                    time=time.time(),
                    loss=loss,
                    tokens=TOKENS,
                    samples=self.spec.training.global_batch_size,
                    step_s=0.5,
                    tokens_per_s=TOKENS / 0.5,
                    gradient_norm=1.0,
                    learning_rate=3e-4,
                    generation=self.generations[-1].number,
                    num_groups=len(self.generations[-1].groups),
                )
                self.steps.append(record)
                self._tell(StepEvent, record=record)

    def enter_generation(self, groups: list[int], reason: str = "All are ready.") -> None:
        with self._lock:
            record = GenerationRecord(
                number=len(self.generations) + 1,
                groups=groups,
                reason=reason,
                step=len(self.steps),
                time=time.time(),
            )
            self.generations.append(record)
            self._tell(GenerationEvent, generation=record)

    def lose_group(self, group_id: int, reason: str) -> None:
        with self._lock:
            self._tell(GroupEvent, group_id=group_id, state=GroupState.LOST, reason=reason)
            rest = [group for group in self.generations[-1].groups if group != group_id]
            self.enter_generation(rest, reason)

    def finish(self) -> None:
        self.train(self.spec.training.steps - len(self.steps))
        self.set_state(JobState.FINISHED, "All steps are done.")

    def status(self) -> JobStatus:
        with self._lock:
            members = self.generations[-1].groups if self.generations else []
            return JobStatus(
                job_id=self.job_id,
                name=self.spec.name,
                state=self.state,
                reason=self.reason,
                created=self.created,
                step=len(self.steps),
                steps=self.spec.training.steps,
                loss=self.steps[-1].loss if self.steps else None,
                tokens_per_s=self.steps[-1].tokens_per_s if self.steps else None,
                generation=len(self.generations),
                partition_size=2,
                wanted_groups=self.wanted,
                minimum_groups=self.spec.groups.minimum,
                maximum_groups=self.spec.groups.upper_bound,
                groups=[
                    GroupStatus(
                        group_id=group,
                        state=GroupState.MEMBER,
                        reason="It trains.",
                        workers=[],
                        sample_s=(0.05, 0.09)[place % 2],
                        slowness=(0.56, 1.8)[place % 2],
                    )
                    for place, group in enumerate(members)
                ],
                generations=list(self.generations),
                samples=SampleCount(due=0, used=0, repeated=0),
            )

    def scale(self, change: GroupsChange) -> JobStatus:
        with self._lock:
            groups = change.applied_to(self.spec, self.wanted, 2)
            self.spec = self.spec.model_copy(update={"groups": groups})
            self.wanted = groups.wanted
            self._tell(
                ScaleEvent,
                wanted=groups.wanted,
                minimum=change.minimum,
                maximum=change.maximum,
                reason="It was asked for.",
            )
            return self.status()

    def cancel(self) -> JobStatus:
        with self._lock:
            if self.is_cancelling or self.state.is_final:
                raise JobConflictError(f"Job {self.job_id} is being cancelled already.")
            self.is_cancelling = True
            return self.status()

    def pause(self) -> JobStatus:
        with self._lock:
            self.set_state(JobState.PAUSED, f"It was paused after step {len(self.steps)}.")
            return self.status()

    async def events(self, after: int, timeout_s: float) -> list[JobEvent]:
        changed = asyncio.Event()
        with self._lock:
            if news := self.history[max(0, after - self._first) :]:
                return list(news)
            self._waiting.append((asyncio.get_running_loop(), changed))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), timeout_s)
        return list(self.history[max(0, after - self._first) :])

    def wake(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for loop, changed in waiting:
            with contextlib.suppress(RuntimeError):  # that loop is closed: its service is gone
                loop.call_soon_threadsafe(changed.set)

    def _tell(self, kind: type[Any], **values: Any) -> None:
        sequence = self._first + len(self.history) + 1
        self.history.append(kind(sequence=sequence, time=time.time(), **values))
        self.wake()


class FakeCluster:
    """Implements `ClusterGateway`."""

    def __init__(self) -> None:
        self.is_reachable = True
        self.workers_per_node = 2
        self._connections: set[asyncio.AbstractEventLoop] = set()  # each service has its own loop
        self.drivers: dict[str, DriverStatus] = {}
        self.supervisors: dict[str, FakeSupervisor] = {}
        self.stopped: list[str] = []
        self.submitted: dict[str, JobSpec] = {}
        self.continuations: dict[str, Continuation | None] = {}
        self.logs: dict[LogSource, list[str]] = {}
        self.left: dict[str, tuple[float, LastWords]] = {}
        self.read_words: list[str] = []
        self.unreadable: set[str] = set()

    @property
    def is_connected(self) -> bool:
        """Whether a service has its connection open."""
        return bool(self._connections)

    @property
    def was_left_open(self) -> bool:
        """Whether a service that is gone has not closed its connection."""
        return any(loop.is_closed() for loop in self._connections)

    def start_supervisor(self, job_id: str, **changes: Any) -> FakeSupervisor:
        """Bring up the supervisor of a submitted job, or of one that nobody submitted here."""
        spec = self.submitted.get(job_id) or parse_job_spec(specification(**changes))
        going_on = self.continuations.get(job_id)
        driver_id = going_on.driver_id if going_on else job_id
        if driver_id in self.drivers:
            self.set_driver(driver_id, DriverState.RUNNING)
        after = going_on.after if going_on else 0
        self.supervisors[job_id] = FakeSupervisor(job_id, spec, after)
        return self.supervisors[job_id]

    def set_driver(self, job_id: str, state: DriverState, message: str = "") -> None:
        self.drivers[job_id] = DriverStatus(state=state, message=message)

    def kill_supervisor(self, job_id: str) -> None:
        self.supervisors.pop(job_id).wake()

    def end_supervisor(self, job_id: str) -> None:
        """Have a supervisor whose job is at rest leave, with its last words."""
        supervisor = self.supervisors.pop(job_id)
        words = LastWords(
            spec=supervisor.spec, status=supervisor.status(), events=list(supervisor.history)
        )
        self.left[job_id] = (time.time(), words)
        supervisor.wake()

    async def connect(self) -> None:
        self._require_reachable()
        self._connections.add(asyncio.get_running_loop())

    async def close(self) -> None:
        self._connections.discard(asyncio.get_running_loop())

    async def health(self) -> None:
        self._require_reachable()

    async def check_layout(self, spec: JobSpec) -> None:
        self._require_reachable()
        size, workers = spec.partition_size, self.workers_per_node
        if size != "auto" and size > workers and size % workers:
            raise LayoutError(
                [Problem("partition_size", str(size), "it takes whole nodes.", "Take another.")]
            )

    async def submit(
        self, job_id: str, spec: JobSpec, continuation: Continuation | None = None
    ) -> None:
        self._require_reachable()
        self.submitted[job_id] = spec
        self.continuations[job_id] = continuation
        driver_id = continuation.driver_id if continuation else job_id
        assert driver_id not in self.drivers, "Ray takes every id once"
        self.set_driver(driver_id, DriverState.PENDING)

    async def driver_status(self, driver_id: str) -> DriverStatus | None:
        self._require_reachable()
        return self.drivers.get(driver_id)

    async def stop_driver(self, driver_id: str) -> None:
        self._require_reachable()
        self.stopped.append(driver_id)
        if driver_id in self.drivers:
            self.set_driver(driver_id, DriverState.STOPPED, "Job was intentionally stopped.")

    async def live_jobs(self) -> list[str]:
        self._require_reachable()
        return sorted(self.supervisors)

    async def ended_jobs(self) -> dict[str, EndedJob]:
        self._require_reachable()
        return {
            job_id: EndedJob(when, words.events[-1].sequence)
            for job_id, (when, words) in self.left.items()
        }

    async def last_words(self, job_id: str) -> LastWords | None:
        self._require_reachable()
        self.read_words.append(job_id)
        if job_id in self.unreadable:
            raise ClusterError("Ray did not answer in 15 s, asked to read last words.")
        return self.left[job_id][1] if job_id in self.left else None

    async def spec(self, job_id: str) -> JobSpec:
        return self._supervisor(job_id).spec

    async def status(self, job_id: str) -> JobStatus:
        return self._supervisor(job_id).status()

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[JobEvent]:
        supervisor = self._supervisor(job_id)
        news = await supervisor.events(after, timeout_s)
        if self.supervisors.get(job_id) is not supervisor:
            raise _gone(job_id)
        return news

    async def scale(self, job_id: str, change: GroupsChange) -> JobStatus:
        return self._supervisor(job_id).scale(change)

    async def cancel(self, job_id: str) -> JobStatus:
        return self._supervisor(job_id).cancel()

    async def pause(self, job_id: str) -> JobStatus:
        return self._supervisor(job_id).pause()

    async def cluster(self) -> ClusterView:
        self._require_reachable()
        node = NodeView("n0", "10.0.0.4", "alive", True, {"CPU": 4.0}, {"CPU": 1.0})
        return ClusterView((node,), (DemandView({"CPU": 2.0}, 1),))

    async def open_logs(
        self, source: LogSource, tail: int, *, follow: bool
    ) -> list[AsyncGenerator[str]]:
        self._require_reachable()
        return [self._lines(source, tail, follow)] if source in self.logs else []

    async def _lines(self, source: LogSource, tail: int, follow: bool) -> AsyncGenerator[str]:
        read = max(0, len(self.logs[source]) - tail)
        while True:
            while read < len(self.logs[source]):
                yield self.logs[source][read]
                read += 1
            if not follow:
                return
            await asyncio.sleep(0.01)

    def _supervisor(self, job_id: str) -> FakeSupervisor:
        self._require_reachable()
        if job_id not in self.supervisors:
            raise _gone(job_id)
        return self.supervisors[job_id]

    def _require_reachable(self) -> None:
        if not self.is_reachable:
            raise ClusterError("No cluster answers.", remedy="Start one.")


def _gone(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"Job {job_id} has no supervisor.")
