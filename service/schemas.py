"""Bodies of the REST API that are not part of the job specification or the live status."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mics_core.spec.cluster import ClusterSpec
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


class PlanRequest(ApiModel):
    """Body of `POST /api/v1/plans`."""

    job: JobSpec
    """The job; what it leaves at `auto` is chosen."""
    cluster: str | ClusterSpec | None = None
    """The name of a known cluster, or what a cluster file holds; the job's `resources.cluster`
    stands in for it."""
    nodes: int | None = Field(default=None, ge=1)
    """Nodes of the cluster, if not as many as it says."""


class PlannedLayout(ApiModel):
    """One layout that fits, and what is predicted of it."""

    partition_size: int
    num_groups: int
    num_workers: int
    micro_batch_size: int
    micro_batches: int
    """Micro-batches of the busiest group in a step."""
    activation_checkpointing: bool
    reshard: str
    accumulation: str
    gather_block: str
    gather_root: str
    scatter_block: str
    scatter_root: str
    step_s: float
    samples_per_s: float
    tokens_per_s: float
    model_tflops: float
    """TFLOP/s of one worker, without operations that are done again."""
    hardware_tflops: float
    """TFLOP/s of one worker, with them."""
    mfu: float
    """Model operations as a share of the peak."""
    memory_bytes: dict[str, float]
    """Memory of one worker, by what it holds, with the `total`."""
    node_bytes: dict[str, float]
    """Bytes that leave a node in a step, by cause, with the `total`."""
    times_s: dict[str, float]
    """Seconds of a step by part: whole durations, and as `exposed_…` what of them shows."""
    reason: str
    """Why it was chosen or not, in one sentence."""


class RefusedLayout(ApiModel):
    """A layout, or a kind of layouts, that cannot be."""

    layout: str
    """Which, in few words."""
    cause: Literal["placement", "strategy", "batch", "memory"]
    reason: str
    """Why not, in one sentence."""


class PlanAnswer(ApiModel):
    """Body of the answer of `POST /api/v1/plans`; all of it is predicted, nothing measured."""

    cluster: str
    nodes: int
    workers_per_node: int
    num_parameters: int
    num_candidates: int
    """Layouts that fit."""
    choice: PlannedLayout
    reason: str
    """Why this choice, in one sentence."""
    candidates: list[PlannedLayout]
    """The other layouts that fit, best first; not all of them."""
    refused: list[RefusedLayout]
    """What cannot be, by partition size."""


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
    "PlanAnswer",
    "PlanRequest",
    "PlannedLayout",
    "RefusedLayout",
    "ScaleRequest",
    "Throughput",
]
