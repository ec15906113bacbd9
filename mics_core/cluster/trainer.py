"""`MicsTrainer`: a job started from a user's own Ray script, in the shape of Ray's `TorchTrainer`.

It is the driver of a job inside the script: the same layout, the same supervisor, the same events.
So the job is listed, watched, scaled and cancelled by the service like any other.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train import Checkpoint, RunConfig, ScalingConfig

from mics_core.cluster.driver import new_job_id, run_job
from mics_core.cluster.names import NAMESPACE
from mics_core.cluster.ray_configs import configured_spec
from mics_core.errors import ClusterError, JobFailedError, MicsError
from mics_core.spec import JobSpec, check_files, load_job_spec, parse_job_spec
from mics_core.spec.folders import CheckpointFolder
from mics_core.spec.status import JobEvent, JobState, StateEvent, StepEvent

__all__ = ["MicsTrainer", "Result"]

_KEPT_STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run.

    Args:
        job_id: The id under which the service lists it.
        state: How it ended: finished, cancelled or failed; or paused, to be resumed by the service.
        reason: Why, in one sentence.
        metrics: The last committed step, with the fields of `StepRecord`; empty before the first.
        metrics_history: The last 100,000 committed steps, oldest first.
        path: Folder or URL of the job's checkpoints; none if it writes none.
        checkpoint_path: The newest complete checkpoint in it.
        error: Why it failed; none otherwise. `fit` returns it and does not raise it.
    """

    job_id: str
    state: JobState
    reason: str
    metrics: dict[str, Any]
    metrics_history: tuple[dict[str, Any], ...]
    path: str | None
    checkpoint_path: str | None
    error: MicsError | None

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest complete checkpoint as Ray Train's own class."""
        return None if self.checkpoint_path is None else Checkpoint(self.checkpoint_path)

    @property
    def metrics_dataframe(self) -> Any:
        """The history as a `pandas.DataFrame`, one row for each committed step."""
        import pandas

        return pandas.DataFrame(list(self.metrics_history))


class MicsTrainer:
    """Trains one job on the Ray cluster that the script is connected to.

    Args:
        train_config: The job specification: a `JobSpec`, a mapping with its fields, or the path of
            a YAML file.
        scaling_config: Ray Train's: `num_workers` is a multiple of `partition_size`, or a pair of
            them for the smallest and the largest number; it goes before `train_config`.
        run_config: Ray Train's: `name`, and `storage_path` for checkpoints; it goes before
            `train_config`.

    Raises:
        SpecificationError: Something breaks a rule.
    """

    def __init__(
        self,
        train_config: JobSpec | Mapping[str, Any] | str | Path,
        *,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
    ):
        match train_config:
            case JobSpec():
                spec = train_config
            case str() | Path():
                spec = load_job_spec(train_config)
            case _:
                spec = parse_job_spec(train_config)
        self.spec = configured_spec(spec, scaling_config, run_config)

    def fit(self) -> Result:
        """Train until the job ends or is paused.

        Connects to Ray as `ray.init` does if the script has not.

        Ctrl-C cancels the job at its next step boundary.

        Raises:
            SpecificationError: The data or the cluster do not hold the job; nothing was started.
        """
        check_files(self.spec)
        if not ray.is_initialized():
            ray.init(namespace=NAMESPACE)
        job_id = new_job_id(self.spec.name)
        course = _Course()
        error: MicsError | None = None
        try:
            state = run_job(job_id, self.spec, on_event=course.take)
        except ClusterError as lost:
            state, error, course.reason = JobState.FAILED, lost, lost.message
        if state is JobState.FAILED and error is None:
            error = JobFailedError(
                f"Job {job_id} failed: {course.reason}",
                remedy="With checkpoint.directory set, the next run continues from its newest"
                " checkpoint.",
            )
        return Result(
            job_id=job_id,
            state=state,
            reason=course.reason,
            metrics=course.history[-1] if course.history else {},
            metrics_history=tuple(course.history),
            path=self.spec.checkpoint.directory,
            checkpoint_path=_newest_checkpoint(self.spec.checkpoint.directory),
            error=error,
        )


class _Course:
    """What the events of a run leave for its result."""

    def __init__(self) -> None:
        self.history: deque[dict[str, Any]] = deque(maxlen=_KEPT_STEPS)
        self.reason = ""

    def take(self, event: JobEvent) -> None:
        """Take one event."""
        if isinstance(event, StepEvent):
            self.history.append(event.record.model_dump())
        elif isinstance(event, StateEvent):
            self.reason = event.reason


def _newest_checkpoint(directory: str | None) -> str | None:
    if directory is None:
        return None
    with contextlib.suppress(Exception):  # storage has errors of its own making
        complete = CheckpointFolder(directory).complete()
        return complete[-1][1] if complete else None
    return None
