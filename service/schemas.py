"""Bodies of the REST API that are not part of the job specification or the live status."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from mics_core.errors import MicsError, SpecificationError
from mics_core.spec.cluster import ClusterSpec
from mics_core.spec.job import JobSpec
from mics_core.spec.status import GroupState, JobEvent, JobState, JobStatus
from service.auth.callers import Role


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
    owner: str | None
    """Who submitted it; none if it was found running, or if nobody has to say who they are."""
    labels: dict[str, str]


class JobDetail(JobSummary):
    """Everything about one job."""

    spec: JobSpec
    status: JobStatus | None
    """Last known live status; none until the job's supervisor has answered once."""


class JobList(ApiModel):
    """The jobs, newest first."""

    jobs: list[JobSummary]
    next_cursor: str | None
    """Hand it back as `cursor` for the jobs that follow; none if there are no more."""


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


OptionalCount = Annotated[
    int, Field(ge=1, lt=2**31, strict=True, json_schema_extra=_without_default)
]


class ScaleRequest(ApiModel):
    """Body of `POST /api/v1/jobs/{id}/scale`; at least one of the three."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "examples": [{"groups": 3}, {"minimum": 2, "maximum": 8}],
        }
    )

    # Absent is not null: the defaults are never checked, and never sent.
    groups: OptionalCount = Field(default=None)  # type: ignore[assignment]
    """Wanted number of partition groups."""
    minimum: OptionalCount = Field(default=None)  # type: ignore[assignment]
    """Fewer living groups than this and the run waits."""
    maximum: OptionalCount = Field(default=None)  # type: ignore[assignment]
    """Most groups that scaling may ask for."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give `groups`, `minimum` or `maximum`")
        return self


class ThroughputPoint(ApiModel):
    """The steps between two points of the history, as means; one step where it has them all."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    step: int
    """The last of the steps."""
    time: float
    """When it was committed."""
    loss: float | None
    """Mean loss per token; `NaN` if one of the steps had none."""
    tokens: float
    """Tokens that entered the loss of a step."""
    samples: float
    """Samples of a step."""
    step_s: float
    """Seconds of a step."""
    tokens_per_s: float
    """Tokens of the steps over their seconds."""
    samples_per_s: float
    tflops_per_worker: float | None
    """Operations of the model that each worker did, in 10¹² a second; none where they are not
    known. Those that activation checkpointing does again are not counted."""
    mfu: float | None
    """The same as a share of the worker's peak; none where that is not known."""
    communication_share: float | None
    """Share of the time in communication that nothing hides; none where it is not measured."""
    goodput: float | None
    """Share of the time from the run's first commit to the last of these steps that went into steps
    of usual length, counted step by step at every resolution; see the whole run's `goodput`."""
    generation: int
    """The newest of the steps."""
    num_groups: int
    """Partition groups of the last step."""
    gradient_norm: float | None
    learning_rate: float


class Throughput(ApiModel):
    """Body of `GET /api/v1/jobs/{id}/throughput`."""

    job_id: str
    tokens_per_s: float | None
    """Median over the last committed steps of the current generation."""
    goodput: float | None
    """Share of the time since the first committed step that went into steps of usual length. A step
    counts whole up to 1.5 times the median of the steps with as many groups, and with that median
    beyond; steps that were committed again later do not count. The time runs until now while the
    job trains or waits, else until its last step. None before the second step."""
    first_time: float | None
    """When the first step of the run was committed: goodput counts from there."""
    mfu: float | None
    """Of the last point."""
    steps_per_point: int
    """Steps that one point stands for."""
    records: list[ThroughputPoint]
    """The points, oldest first."""


class EventList(ApiModel):
    """Body of `GET /api/v1/jobs/{id}/events/list`."""

    events: list[JobEvent]
    next_after: int
    """Hand it back as `after` for the events that follow."""


class Checkpoint(ApiModel):
    """One checkpoint."""

    step: int
    """Steps committed in it."""
    path: str
    """Its folder, below the job's own `checkpoint.directory`."""
    time: float
    """When it was complete, or failed."""
    error: str | None
    """What went wrong; none if it is complete."""


class CheckpointList(ApiModel):
    """The checkpoints of a job, oldest first; the oldest may have been removed since."""

    checkpoints: list[Checkpoint]


class PlacedWorker(ApiModel):
    """One worker and where it is."""

    node_id: str
    host: str
    group_id: int
    group_state: GroupState
    rank: int
    """Rank in its partition group; also the index of its replication group."""
    pid: int
    step: int
    """Steps its partition group has committed."""


class Placement(ApiModel):
    """Where the workers of a job are."""

    generation: int
    workers: list[PlacedWorker]


class NodeWorker(ApiModel):
    """One worker on a node."""

    job_id: str
    group_id: int
    rank: int


class ClusterNode(ApiModel):
    """One node of the cluster."""

    node_id: str
    host: str
    state: str
    """`alive`, `draining` or `dead`."""
    is_head: bool
    resources: dict[str, float]
    """What it has, by Ray's names."""
    used: dict[str, float]
    """What of it is taken."""
    workers: list[NodeWorker]
    """Workers of the jobs."""
    free_workers: int
    """How many more workers with one GPU each, or one CPU each on nodes without GPUs, it holds."""


class PendingDemand(ApiModel):
    """What is asked for and has no room."""

    resources: dict[str, float]
    count: int


class Cluster(ApiModel):
    """Body of `GET /api/v1/cluster`."""

    nodes: list[ClusterNode]
    pending: list[PendingDemand]


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
    """The value and the rule, in one sentence; of several broken rules, a line each."""
    field: str | None = None
    """Dotted path of the field it is about; none if it is about no single one."""
    remedy: str = Field(min_length=1)
    """What to do, in one sentence; of several broken rules, that of the first."""
    problems: list[ErrorProblem] = []
    """Every broken rule, of a specification or a request."""

    @classmethod
    def of(cls, error: MicsError, remedy: str, message: str | None = None) -> Self:
        """Return the detail that stands for `error`.

        Args:
            error: What went wrong.
            remedy: What to do if the error does not say it.
            message: In the place of its own message.
        """
        problems = error.problems if isinstance(error, SpecificationError) else ()
        own_remedy = error.remedy or (problems[0].remedy if problems else None)
        return cls(
            code=error.code,
            message=error.message if message is None else message,
            field=error.field,
            remedy=own_remedy or remedy,
            problems=[ErrorProblem(**problem.as_dict()) for problem in problems],
        )


class ErrorBody(ApiModel):
    """Form of every error answer."""

    error: ErrorDetail


class Readiness(ApiModel):
    """Body of `GET /readyz`."""

    ready: bool
    database: str
    """`connected`, or why not."""
    ray: str
    """`connected`, or why not."""


class LoginRequest(ApiModel):
    """Body of `POST /api/v1/session`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"token": "mics_1a2b3c4d_the-secret-part"}]}
    )

    token: SecretStr = Field(max_length=200)
    """A token that `mics token create` printed."""


class SessionInfo(ApiModel):
    """Who sends a request."""

    name: str | None
    """The owner of the token; none where no token is needed."""
    role: Role
    requires_token: bool
    """Whether requests need a token or a session."""


class Health(ApiModel):
    """Body of `GET /healthz`."""

    status: Literal["ok", "degraded"]
    version: str
    ray: str
    """`connected`, or why not."""


__all__ = [
    "Checkpoint",
    "CheckpointList",
    "Cluster",
    "ClusterNode",
    "ErrorBody",
    "ErrorDetail",
    "ErrorProblem",
    "EventList",
    "GroupState",
    "Health",
    "JobDetail",
    "JobList",
    "JobSummary",
    "LoginRequest",
    "NodeWorker",
    "PendingDemand",
    "PlacedWorker",
    "Placement",
    "PlanAnswer",
    "PlanRequest",
    "PlannedLayout",
    "Readiness",
    "RefusedLayout",
    "ScaleRequest",
    "SessionInfo",
    "Throughput",
    "ThroughputPoint",
]
