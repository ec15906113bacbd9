"""Bodies of the REST API that are not part of the job specification or the live status."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mics_core.spec.job import JobSpec
from mics_core.spec.status import GroupState, JobState, JobStatus, StepRecord


class ApiModel(BaseModel):
    """Base of all bodies."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class JobSummary(ApiModel):
    """One line of the list of jobs."""

    job_id: str
    name: str
    source: Literal["rest", "ray"]
    """`rest`: submitted here. `ray`: found running, sent by `ray job submit` or a script."""
    state: JobState
    reason: str
    """Why it is in this state, in one sentence."""
    created: float
    """Seconds since the epoch."""
    finished: float | None
    step: int
    """Committed steps."""
    steps: int
    loss: float | None
    tokens_per_s: float | None
    num_groups: int
    """Partition groups of the current generation."""
    wanted_groups: int
    maximum_groups: int
    generation: int


class JobDetail(JobSummary):
    """Everything about one job."""

    spec: JobSpec
    status: JobStatus | None
    """Last known live status; none until the job's supervisor has answered once."""


class JobList(ApiModel):
    """The jobs, newest first."""

    jobs: list[JobSummary]


class ScaleRequest(ApiModel):
    """Body of `POST /api/v1/jobs/{id}/scale`."""

    groups: int = Field(ge=1, lt=2**31, strict=True)
    """Wanted number of partition groups."""


class Throughput(ApiModel):
    """Body of `GET /api/v1/jobs/{id}/throughput`."""

    job_id: str
    tokens_per_s: float | None
    """Median over the last committed steps of the current generation."""
    records: list[StepRecord]
    """The newest steps, oldest first; at most `limit` of them."""


class ErrorProblem(ApiModel):
    """One broken rule."""

    field: str
    value: str
    rule: str
    remedy: str


class ErrorDetail(ApiModel):
    """What went wrong and what to do."""

    code: str
    """Stable, for programs."""
    message: str
    field: str | None = None
    remedy: str | None = None
    problems: list[ErrorProblem] = []


class ErrorBody(ApiModel):
    """Form of every error answer."""

    error: ErrorDetail


class Health(ApiModel):
    """Body of `GET /healthz`."""

    status: Literal["ok", "degraded"]
    version: str
    ray: str
    """`connected`, or why not."""


__all__ = [
    "ErrorBody",
    "ErrorDetail",
    "ErrorProblem",
    "GroupState",
    "Health",
    "JobDetail",
    "JobList",
    "JobSummary",
    "ScaleRequest",
    "Throughput",
]
