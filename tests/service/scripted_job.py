"""A job whose life a test plays by hand; what it shows has the forms of the real status."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

from mics_core.errors import JobConflictError, ScaleError
from mics_core.spec import JobSpec
from mics_core.spec.status import (
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
    WorkerStatus,
)
from service.schemas import JobDetail, JobSummary, Throughput, ThroughputPoint

_GONE = (GroupState.LEFT, GroupState.LOST)


def example_spec(*, name: str = "bert-small", steps: int = 40, maximum: int = 4) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"family": "bert", "hidden_size": 64, "num_layers": 2, "num_heads": 2},
        "data": {"kind": "text", "paths": ["/data/*.txt"]},
        "training": {
            "sequence_length": 64,
            "global_batch_size": 256,
            "micro_batch_size": 1,
            "steps": steps,
        },
        "partition_size": 2,
        "groups": {"minimum": 1, "wanted": 2, "maximum": maximum},
    }


class ScriptedJob:
    """One job whose life the test plays by hand; every method may be called from any thread."""

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        *,
        partition_size: int = 2,
        workers_per_node: int = 2,
        clock: float | None = None,
    ):
        self.job_id, self.spec = job_id, spec
        self.partition_size, self.workers_per_node = partition_size, workers_per_node
        self.lock = threading.RLock()
        self.now = time.time() if clock is None else clock
        self.created, self.state, self.reason = self.now, JobState.PENDING, "Waits for its groups."
        self.groups: dict[int, GroupStatus] = {}
        self.generations: list[GenerationRecord] = []
        self.records: list[StepRecord] = []
        self.events: list[JobEvent] = []
        self.wanted = spec.groups.wanted
        self.finished: float | None = None

    def set_state(self, state: JobState, reason: str) -> None:
        with self.lock:
            self.state, self.reason = state, reason
            if state.is_final:
                self.finished = self.now
            self._add(StateEvent, state=state, reason=reason)

    def set_group(self, group_id: int, state: GroupState, reason: str) -> None:
        with self.lock:
            before = self.groups.get(group_id)
            workers = before.workers if before else []
            if not workers and state not in (GroupState.PLACING, *_GONE):
                workers = [self._worker(group_id, rank) for rank in range(self.partition_size)]
            self.groups[group_id] = GroupStatus(
                group_id=group_id, state=state, reason=reason, workers=workers
            )
            self._add(GroupEvent, group_id=group_id, state=state, reason=reason)

    def form_generation(self, reason: str) -> None:
        """Announce and enter the generation of all groups that are members now."""
        with self.lock:
            members = [g.group_id for g in self.groups.values() if g.state is GroupState.MEMBER]
            number = len(self.generations) + 1
            record = GenerationRecord(
                number=number, groups=members, reason=reason, step=None, time=self.now
            )
            self._add(GenerationEvent, generation=record)
            record = record.model_copy(update={"step": len(self.records)})
            self.generations.append(record)
            self._add(GenerationEvent, generation=record)

    def join(self, *group_ids: int, reason: str | None = None) -> None:
        """Bring groups in, all the way to membership, under one new generation."""
        for group_id in group_ids:
            self.set_group(group_id, GroupState.PLACING, "Waits for nodes with free workers.")
            self.set_group(group_id, GroupState.STARTING, "Its workers build their shards.")
            self.set_group(group_id, GroupState.READY, "Waits for the next step boundary.")
            self.set_group(group_id, GroupState.MEMBER, "Trains.")
        names = ", ".join(str(group_id) for group_id in group_ids)
        self.form_generation(
            reason or f"Group {names} joined with a copy of its neighbours' state."
        )

    def lose(self, group_id: int, reason: str) -> None:
        self.set_group(group_id, GroupState.LOST, reason)
        self.form_generation(f"Group {group_id} was lost: {reason}")

    def commit_step(self, *, step_s: float = 0.25) -> None:
        with self.lock:
            step = len(self.records)
            members = len(self.generations[-1].groups) if self.generations else 1
            wobble = 1 + 0.05 * math.sin(step * 1.7) + 0.03 * math.sin(step * 0.37)
            tokens = self.spec.training.global_batch_size * self.spec.training.sequence_length
            seconds = step_s * wobble / members
            is_live = self.now > time.time() - 60
            self.now = max(time.time(), self.now) if is_live else self.now + seconds
            record = StepRecord(
                step=step,
                time=self.now,
                loss=2.2 + 7.5 * math.exp(-step / 220) + 0.12 * wobble * math.sin(step * 0.9),
                tokens=tokens,
                samples=self.spec.training.global_batch_size,
                step_s=seconds,
                tokens_per_s=tokens / seconds,
                gradient_norm=1.0,
                learning_rate=3e-4,
                generation=len(self.generations),
                num_groups=members,
                communication_s=0.25 * seconds,
            )
            self.records.append(record)
            self._add(StepEvent, record=record)

    def scale(self, groups: int) -> None:
        with self.lock:
            if self.state.is_final:
                raise JobConflictError(
                    f"job {self.job_id} is {self.state}.", remedy="Submit it again."
                )
            upper = self.spec.groups.upper_bound
            if not 1 <= groups <= upper:
                raise ScaleError(
                    f"groups ({groups}) must be from 1 to {upper}.",
                    remedy="Choose a number in these bounds, or submit with a larger maximum.",
                    field="groups",
                )
            self.wanted = groups
            self._add(ScaleEvent, wanted=groups, reason=f"The API asked for {groups} groups.")

    def cancel(self) -> None:
        with self.lock:
            if self.state.is_final:
                raise JobConflictError(
                    f"job {self.job_id} is {self.state} already.", remedy="Nothing is left to do."
                )
            self.set_state(JobState.CANCELLED, "Cancelled on request at a step boundary.")

    def summary(self) -> JobSummary:
        with self.lock:
            return JobSummary(**self._summary_fields())

    def detail(self) -> JobDetail:
        with self.lock:
            return JobDetail(**self._summary_fields(), spec=self.spec, status=self._status())

    def throughput(self, points: int) -> Throughput:
        with self.lock:
            return Throughput(
                job_id=self.job_id,
                tokens_per_s=self._rate(),
                goodput=None,
                first_time=self.records[0].time if self.records else None,
                mfu=None,
                steps_per_point=1,
                records=[_point(record) for record in self.records[-points:]],
            )

    def _add(self, kind: Any, **fields: Any) -> None:
        with self.lock:
            self.events.append(kind(sequence=len(self.events) + 1, time=self.now, **fields))

    def _worker(self, group_id: int, rank: int) -> WorkerStatus:
        node = (group_id * self.partition_size + rank) // self.workers_per_node
        return WorkerStatus(
            rank=rank,
            node_id=f"{node:04x}" + "5a" * 26,
            host=f"10.0.{node // 250}.{node % 250 + 4}",
            pid=4000 + group_id * 64 + rank,
            step=len(self.records),
        )

    def _rate(self) -> float | None:
        return self.records[-1].tokens_per_s if self.records else None

    def _summary_fields(self) -> dict[str, Any]:
        members = sum(group.state is GroupState.MEMBER for group in self.groups.values())
        return {
            "job_id": self.job_id,
            "name": self.spec.name,
            "source": "rest",
            "state": self.state,
            "reason": self.reason,
            "created": self.created,
            "finished": self.finished,
            "step": len(self.records),
            "steps": self.spec.training.steps,
            "loss": self.records[-1].loss if self.records else None,
            "tokens_per_s": self._rate(),
            "num_groups": members,
            "wanted_groups": self.wanted,
            "maximum_groups": self.spec.groups.upper_bound,
            "generation": len(self.generations),
            "owner": None,
            "labels": dict(self.spec.labels),
        }

    def _status(self) -> JobStatus | None:
        if not self.groups:
            return None
        used = sum(record.samples for record in self.records)
        fields = self._summary_fields()
        for name in ("source", "finished", "num_groups", "maximum_groups", "owner", "labels"):
            del fields[name]
        return JobStatus(
            **fields,
            partition_size=self.partition_size,
            minimum_groups=self.spec.groups.minimum,
            maximum_groups=self.spec.groups.upper_bound,
            groups=list(self.groups.values()),
            generations=self.generations,
            samples=SampleCount(due=used, used=used, repeated=0),
        )


def _point(record: StepRecord) -> ThroughputPoint:
    return ThroughputPoint(
        **record.model_dump(exclude={"communication_s"}),
        samples_per_s=record.samples / record.step_s,
        tflops_per_worker=None,
        mfu=None,
        communication_share=0.25,
        goodput=None,
    )
