"""What a job's supervisor leaves behind when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobEvent, JobStatus

__all__ = ["EndedJob", "LastWords"]


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that left last words.

    Args:
        time: When, in seconds since the epoch.
        last_sequence: Sequence number of its last event.
    """

    time: float
    last_sequence: int


class LastWords(BaseModel):
    """Everything that a service has to know of a job that ended, or was paused, unheard.

    As with `JobStatus`, a loss that is NaN is text in its JSON.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    spec: JobSpec
    status: JobStatus
    events: list[JobEvent]
    """In order, without a gap; the last one tells of the end, or of the pause."""
