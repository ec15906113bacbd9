"""How jobs, steps and events become rows and come back from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from sqlalchemy.engine import RowMapping

from mics_core.spec.job import JobSpec
from mics_core.spec.status import (
    GenerationEvent,
    JobEvent,
    JobState,
    JobStatus,
    ScaleEvent,
    StateEvent,
    StepEvent,
    StepRecord,
)
from service.gateway import Continuation
from service.schemas import JobDetail, JobSummary

if TYPE_CHECKING:
    from service.store import SubmissionKey

__all__ = [
    "OpenJob",
    "changes_of_event",
    "changes_of_status",
    "detail_of_row",
    "event_of_row",
    "new_job_row",
    "open_job_of_row",
    "resumed_spec",
    "row_of_event",
    "row_of_key",
    "row_of_step",
    "rows_of_labels",
    "step_event_of_row",
    "step_of_row",
    "summary_of_row",
]

_EVENT: TypeAdapter[JobEvent] = TypeAdapter(JobEvent)

_STEP_COLUMNS = tuple(StepRecord.model_fields)

_MAY_BE_NAN = ("loss", "gradient_norm")

Row = Mapping[str, Any] | RowMapping


@dataclass(frozen=True, slots=True)
class OpenJob:
    """What is needed to decide about a job that has not ended."""

    job_id: str
    source: str
    state: JobState
    created: float
    step: int
    steps: int
    cancel_requested: bool
    handed_over: bool
    """Whether the cluster has its driver."""
    submission: int
    """How often it was resumed."""
    last_sequence: int
    status: JobStatus | None

    @property
    def driver_id(self) -> str:
        """Id of its newest driver at the Ray Jobs API, which takes each id once."""
        return self.job_id if self.submission == 0 else f"{self.job_id}-r{self.submission}"

    @property
    def continuation(self) -> Continuation | None:
        """How its newest driver goes on, if it is not the first."""
        return Continuation(self.driver_id, self.last_sequence) if self.submission else None


def new_job_row(
    job_id: str, spec: JobSpec, source: str, created: float, reason: str
) -> dict[str, Any]:
    """Return the row of a job of which nothing but its specification is known."""
    return {
        "job_id": job_id,
        "name": spec.name,
        "source": source,
        "state": JobState.PENDING.value,
        "reason": _storable(reason),
        "created": created,
        "finished": None,
        "step": 0,
        "steps": spec.training.steps,
        "loss": None,
        "tokens_per_s": None,
        "num_groups": 0,
        "wanted_groups": spec.groups.wanted,
        "maximum_groups": spec.groups.upper_bound,
        "generation": 0,
        "spec": spec.model_dump(mode="json"),
        "status": None,
        "last_sequence": 0,
        "cancel_requested": False,
        "labels": dict(spec.labels),
    }


def row_of_key(job_id: str, key: SubmissionKey) -> dict[str, Any]:
    """Return the row of a submission's key."""
    return {
        "owner": key.owner or "",
        "key": key.key,
        "body_hash": key.body_hash,
        "job_id": job_id,
    }


def rows_of_labels(job_id: str, spec: JobSpec) -> list[dict[str, str]]:
    """Return the rows of a job's labels."""
    return [{"job_id": job_id, "name": name, "value": value} for name, value in spec.labels.items()]


def resumed_spec(row: Row) -> dict[str, Any]:
    """Return the specification with which a paused job goes on."""
    spec = JobSpec.model_validate(row["spec"])
    groups: dict[str, int] = {"wanted": row["wanted_groups"], "maximum": row["maximum_groups"]}
    if row["status"] is not None:
        groups["minimum"] = row["status"]["minimum_groups"]
    changes = {
        "groups": spec.groups.model_copy(update=groups),
        "checkpoint": spec.checkpoint.model_copy(update={"resume": True}),
    }
    return spec.model_copy(update=changes).model_dump(mode="json")


def _storable(text: str) -> str:
    """Return text without what Postgres refuses: the words of a user's error may hold anything."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def changes_of_event(event: JobEvent) -> dict[str, Any]:
    """Return the columns of a job's row that `event` changes."""
    match event:
        case StateEvent(state=state, reason=reason, time=time):
            finished = time if state.is_final else None
            return {"state": state.value, "reason": _storable(reason), "finished": finished}
        case StepEvent(record=record):
            return {"step": record.step + 1, "loss": record.loss}
        case GenerationEvent(generation=generation) if generation.step is not None:
            return {"generation": generation.number, "num_groups": len(generation.groups)}
        case ScaleEvent(wanted=wanted, maximum=maximum):
            changes = {"wanted_groups": wanted}
            return changes if maximum is None else changes | {"maximum_groups": maximum}
        case _:
            return {}


def changes_of_status(status: JobStatus) -> dict[str, Any]:
    """Return the columns of a job's row that a fresh status changes.

    The state is not among them: it follows the events, so that the list never shows an end that the
    event stream has not told.
    """
    members = next((g.groups for g in status.generations if g.number == status.generation), [])
    return {
        "step": status.step,
        "steps": status.steps,
        "loss": status.loss,
        "tokens_per_s": status.tokens_per_s,
        "num_groups": len(members),
        "wanted_groups": status.wanted_groups,
        "maximum_groups": status.maximum_groups,
        "generation": status.generation,
        # Through text, where the models write NaN in a way that every JSON column takes.
        "status": json.loads(status.model_dump_json()),
    }


def summary_of_row(row: Row) -> JobSummary:
    """Return a job's line of the list."""
    return JobSummary.model_validate({name: row[name] for name in JobSummary.model_fields})


def detail_of_row(row: Row) -> JobDetail:
    """Return everything about a job; its status says the same state as its row."""
    values = {name: row[name] for name in JobDetail.model_fields}
    if values["status"] is not None:
        values["status"] = values["status"] | {"state": row["state"], "reason": row["reason"]}
    return JobDetail.model_validate(values)


def open_job_of_row(row: Row) -> OpenJob:
    """Return what the reconciliation looks at."""
    return OpenJob(
        job_id=row["job_id"],
        source=row["source"],
        state=JobState(row["state"]),
        created=row["created"],
        step=row["step"],
        steps=row["steps"],
        cancel_requested=row["cancel_requested"],
        handed_over=row["handed_over"],
        submission=row["submission"],
        last_sequence=row["last_sequence"],
        status=None if row["status"] is None else JobStatus.model_validate(row["status"]),
    )


def row_of_event(job_id: str, event: JobEvent) -> dict[str, Any]:
    """Return the row of an event that is no step."""
    return {
        "job_id": job_id,
        "sequence": event.sequence,
        "kind": event.kind,
        "time": event.time,
        "body": json.loads(event.model_dump_json()),
    }


def event_of_row(row: Row) -> JobEvent:
    """Return the event that `row_of_event` stored."""
    return _EVENT.validate_python(row["body"])


def row_of_step(job_id: str, event: StepEvent) -> dict[str, Any]:
    """Return the row of a committed step."""
    values = {name: getattr(event.record, name) for name in _STEP_COLUMNS}
    for name in _MAY_BE_NAN:
        values[name] = None if math.isnan(values[name]) else values[name]
    return {
        "job_id": job_id,
        "sequence": event.sequence,
        "event_time": event.time,
        **values,
    }


def step_of_row(row: Row) -> StepRecord:
    """Return the step that `row_of_step` stored."""
    values = {name: row[name] for name in _STEP_COLUMNS}
    for name in _MAY_BE_NAN:
        values[name] = math.nan if values[name] is None else values[name]
    return StepRecord.model_validate(values)


def step_event_of_row(row: Row) -> StepEvent:
    """Return the event that told of a step."""
    return StepEvent(sequence=row["sequence"], time=row["event_time"], record=step_of_row(row))
