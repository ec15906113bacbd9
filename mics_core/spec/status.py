"""The live status of a job, as the supervisor gives it and the API, the page and the CLI show it.

These models are the contract between `mics_core.cluster` and `service`; they need neither torch nor
Ray. Times are seconds since the epoch, as `time.time()` gives them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    PENDING = "pending"
    """Accepted; its first partition groups are not training yet."""
    RUNNING = "running"
    """Training."""
    WAITING = "waiting"
    """Fewer partition groups are alive than the minimum; training goes on when they are."""
    PAUSED = "paused"
    """Stopped on request, to go on from its checkpoint; nothing of it runs."""
    FINISHED = "finished"
    """All steps are done."""
    CANCELLED = "cancelled"
    """Stopped on request, at a step boundary."""
    FAILED = "failed"
    """Ended by an error that the status names."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.FINISHED, JobState.CANCELLED, JobState.FAILED)

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing of the job runs."""
        return self.is_final or self is JobState.PAUSED


class GroupState(StrEnum):
    """Where a partition group stands."""

    PLACING = "placing"
    """Waiting for nodes with free workers."""
    STARTING = "starting"
    """Its workers are being started and build their shards."""
    READY = "ready"
    """Waiting for the step boundary at which it joins."""
    MEMBER = "member"
    """Part of the current generation: it trains."""
    LEAVING = "leaving"
    """Leaves at the next step boundary."""
    LEFT = "left"
    """Left as asked, or finished its work."""
    LOST = "lost"
    """Gone without being asked."""

    @property
    def is_gone(self) -> bool:
        """Whether nothing of it runs."""
        return self in (GroupState.LEFT, GroupState.LOST)


class StatusModel(BaseModel):
    """Base of all parts of the status."""

    # A run that diverges reports NaN, which JSON cannot say but as text; reading gives it back.
    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="strings"
    )


class WorkerStatus(StatusModel):
    """One worker process."""

    rank: int
    """Rank inside its partition group; also the index of its replication group."""
    node_id: str
    """Ray's id of the node it runs on."""
    host: str
    """Address of that node."""
    pid: int
    """Process id."""
    step: int
    """Steps its partition group has committed."""


class GroupStatus(StatusModel):
    """One partition group."""

    group_id: int
    """Number of the group, never used twice in a job."""
    state: GroupState
    """Where it stands."""
    reason: str
    """Why it stands there, in one sentence."""
    workers: list[WorkerStatus]
    """Its workers by rank; empty until they report."""
    sample_s: float | None = None
    """Seconds that it takes for one of its samples, without its waits for other groups: median over
    the last steps. None while it does not train."""
    slowness: float | None = None
    """How many times slower it is than the median of the other groups that train. All commit a step
    together: the one that is slowest sets the pace. None for the only group."""


class GenerationRecord(StatusModel):
    """One membership of the replication groups."""

    number: int
    """1, 2, 3, …"""
    groups: list[int]
    """Ids of the member groups, in the order of the replication groups' ranks."""
    reason: str
    """Why it was formed, in one sentence."""
    step: int | None
    """First step trained under it; none until its members have entered it."""
    time: float
    """When it was announced."""


class StepRecord(StatusModel):
    """One committed step."""

    step: int
    """Number of the step, from 0."""
    time: float
    """When it was committed."""
    loss: float
    """Mean loss per token over the global batch."""
    tokens: int
    """Tokens that entered the loss."""
    samples: int
    """Samples used: the global batch size."""
    step_s: float
    """Seconds since the commit before, or since training began."""
    tokens_per_s: float
    """`tokens / step_s`."""
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    learning_rate: float
    """Learning rate of the step."""
    generation: int
    """Generation that committed it."""
    num_groups: int
    """Partition groups of that generation."""
    communication_s: float | None = None
    """Seconds of `step_s` in which a worker of one of the groups, on the mean, waited for others or
    for the network; none on GPUs, where it is not measured."""


class SampleCount(StatusModel):
    """Proof that every sample is used once: counted by the workers, not derived from the plan."""

    due: int
    """Samples of all committed steps."""
    used: int
    """Different samples that went into a committed step."""
    repeated: int
    """Uses beyond the first."""


class JobStatus(StatusModel):
    """Everything that is known of a live job at one moment."""

    job_id: str
    name: str
    state: JobState
    reason: str
    """Why it is in this state, in one sentence."""
    created: float
    step: int
    """Committed steps."""
    steps: int
    """Steps of the whole run."""
    loss: float | None
    """Loss of the last committed step."""
    tokens_per_s: float | None
    """Median over the last committed steps of the current generation."""
    generation: int
    partition_size: int
    wanted_groups: int
    minimum_groups: int
    maximum_groups: int
    model_flops_per_sample: float | None = None
    """Operations of one sample, forward and backward, by the planner's formula; none for a model
    that it does not know. What is done again for activation checkpointing is not among them."""
    peak_flops_per_s: float | None = None
    """Peak of one worker in the job's precision, if the job names its cluster."""
    groups: list[GroupStatus]
    """All groups ever, by id; those that are gone keep their last reason."""
    generations: list[GenerationRecord]
    samples: SampleCount


class DriverState(StrEnum):
    """Where the driver process of a job stands, as the Ray Jobs API tells it."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether the process has ended."""
        return self in (DriverState.SUCCEEDED, DriverState.FAILED, DriverState.STOPPED)


class DriverStatus(StatusModel):
    """The driver process of a job: all there is to see before and after its supervisor lives."""

    state: DriverState
    message: str
    """Ray's own words; those of a failed driver end with the last lines of its output."""


class StateEvent(StatusModel):
    """The job changed its state."""

    kind: Literal["state"] = "state"
    sequence: int
    time: float
    state: JobState
    reason: str


class GroupEvent(StatusModel):
    """A partition group changed its state."""

    kind: Literal["group"] = "group"
    sequence: int
    time: float
    group_id: int
    state: GroupState
    reason: str


class GenerationEvent(StatusModel):
    """A generation was announced (`step` is none) or entered by its members (`step` is set)."""

    kind: Literal["generation"] = "generation"
    sequence: int
    time: float
    generation: GenerationRecord


class StepEvent(StatusModel):
    """A step was committed."""

    kind: Literal["step"] = "step"
    sequence: int
    time: float
    record: StepRecord


class ScaleEvent(StatusModel):
    """The wanted number of partition groups, or its bounds, changed."""

    kind: Literal["scale"] = "scale"
    sequence: int
    time: float
    wanted: int
    minimum: int | None = None
    """The new lower bound, if it was changed."""
    maximum: int | None = None
    """The new upper bound, if it was changed."""
    reason: str


class CheckpointEvent(StatusModel):
    """A checkpoint was written, or failed; the run goes on either way."""

    kind: Literal["checkpoint"] = "checkpoint"
    sequence: int
    time: float
    step: int
    """Steps committed in it."""
    path: str
    """Its folder."""
    error: str
    """What went wrong, or empty if it is complete."""


class RegroupPhases(StatusModel):
    """Seconds that a change of membership took, by phase."""

    detect_s: float | None
    """From the last committed step to the news of a loss, which nobody sees happen; none without a
    loss."""
    agree_s: float
    """From then, or from the announcement of newcomers, until the last member that trains had ended
    its step or broken it off."""
    connect_s: float
    """Meeting each other then, and connecting, as far as that was not done beside earlier steps."""
    copy_s: float | None
    """Until the last newcomer held the model states, while the others trained; none without one."""
    redo_s: float | None
    """What was left of the step that a loss broke, until it was committed; none without a loss."""


class RegroupEvent(StatusModel):
    """A change of membership is over."""

    kind: Literal["regroup"] = "regroup"
    sequence: int
    time: float
    generation: int
    """Number of the generation that it led to."""
    reason: str
    """Why it was formed."""
    step: int
    """First step trained under it."""
    phases: RegroupPhases
    """What it took."""
    kept: float | None = None
    """The part of the step that a loss broke, 0 to 1, which the other groups had computed and went
    on with; none without a loss."""
    overtook: list[int] = Field(default_factory=list)
    """Generations before it of which no committed step was heard, since the next change came first.
    What they took is counted here if a loss began them."""

    def in_words(self) -> str:
        """Return what it took."""
        words = [f"{name[:-2]} {s:.2f} s" for name, s in self.phases if s is not None]
        if self.kept is not None:
            words.append(f"{100 * self.kept:.0f} % of the step was kept")
        if self.overtook:
            words.append(f"overtook {', '.join(map(str, self.overtook))}")
        return ", ".join(words)


JobEvent = Annotated[
    StateEvent
    | GroupEvent
    | GenerationEvent
    | StepEvent
    | ScaleEvent
    | CheckpointEvent
    | RegroupEvent,
    Field(discriminator="kind"),
]
"""One entry of a job's event stream. `sequence` counts 1, 2, 3, … without a gap in each job."""
