"""Decides how a job ended whose supervisor is gone without having said so.

Pure: what is known of the job, what the Ray Jobs API says of its driver, how long both have been
missing; out comes a final state with its reason, or none as long as it may still come back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mics_core.spec.status import DriverState, DriverStatus, GroupState, JobState, JobStatus
from service.rows import OpenJob

__all__ = ["Outcome", "Patience", "closed_status", "decide_outcome", "last_error"]

_ERROR_LINE = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit): .*\S)\s*$"
)

# What the driver logs of every change of state, see `mics_core.cluster.driver`.
_STATE_LINE = re.compile(r"^job is (finished|cancelled|failed|paused): (.*\S)\s*$")

_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_GONE = (GroupState.LEFT, GroupState.LOST)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job."""

    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a job may be without a supervisor and without a known driver."""

    start_s: float
    """While it is being submitted."""
    lost_s: float
    """Once it has lived."""


def decide_outcome(
    job: OpenJob, driver: DriverStatus | None, missing_s: float, patience: Patience
) -> Outcome | None:
    """Return how `job`, whose supervisor is not alive, has ended.

    Args:
        job: What is known of it.
        driver: What the Ray Jobs API says of its driver; none if it knows no such, which is also
            so for every job that was started otherwise.
        missing_s: For how long the supervisor has been missing.
        patience: How long that may be where there is no driver to ask.

    Returns:
        None while the supervisor may still come (back).
    """
    if job.status is not None and job.status.state.is_final:
        return Outcome(job.status.state, job.status.reason)
    if driver is None:
        return _outcome_without_driver(job, missing_s, patience)
    if driver.state.is_final and (told := _told_end(driver.message)) is not None:
        return told
    match driver.state:
        case DriverState.FAILED:
            return Outcome(JobState.FAILED, last_error(driver.message))
        case DriverState.STOPPED:
            when = f"at step {job.step} of {job.steps}" if job.status else "before it trained"
            what = "It was cancelled" if job.cancel_requested else "Its driver was stopped"
            return Outcome(JobState.CANCELLED, f"{what} {when}.")
        case DriverState.SUCCEEDED if job.step >= job.steps:
            return Outcome(JobState.FINISHED, f"All {job.steps} steps are done.")
        case DriverState.SUCCEEDED if job.cancel_requested:
            return Outcome(JobState.CANCELLED, "It was cancelled through the service.")
        case DriverState.SUCCEEDED:
            return Outcome(
                JobState.FINISHED,
                f"Its driver ended without an error after step {job.step} of {job.steps}, the last"
                " that the service saw.",
            )
        case _:
            return None


def _outcome_without_driver(job: OpenJob, missing_s: float, patience: Patience) -> Outcome | None:
    has_lived = job.status is not None
    if missing_s < (patience.lost_s if has_lived else patience.start_s):
        return None
    if job.cancel_requested:
        return Outcome(JobState.CANCELLED, "It was cancelled through the service.")
    if has_lived:
        return Outcome(
            JobState.FAILED,
            f"Its supervisor is gone since step {job.step} of {job.steps}, and the cluster knows no"
            " driver that could say why.",
        )
    return Outcome(
        JobState.FAILED,
        "It never started: the cluster knows no driver of it, since the service or the cluster was"
        " stopped before they had it. Submit it again.",
    )


def _told_end(message: str) -> Outcome | None:
    """Return the end that the last lines of a driver's output tell."""
    for line in reversed(_lines(message)):
        if found := _STATE_LINE.match(line):
            return Outcome(JobState(found[1]), found[2])
    return None


def _lines(message: str) -> list[str]:
    return [_CLOCK.sub("", _COLOURS.sub("", line)).rstrip() for line in message.splitlines()]


def last_error(message: str) -> str:
    """Return the sentence of the last error in a failed driver's message, without its stack trace.

    The Jobs API gives the last lines of the driver's output. The error is the last line of a
    traceback, but lines of other processes may follow it.
    """
    lines = _lines(message)
    for line in reversed(lines):
        if found := _ERROR_LINE.match(line):
            return found[1]
    spoken = [line.strip() for line in lines if line.strip()]
    return spoken[-1] if spoken else "Its driver failed without a word."


def closed_status(status: JobStatus, outcome: Outcome) -> JobStatus:
    """Return the last status of a job as its end leaves it: no partition group lives on."""
    gone = GroupState.LOST if outcome.state is JobState.FAILED else GroupState.LEFT
    groups = [
        group
        if group.state in _GONE
        else group.model_copy(update={"state": gone, "reason": f"The job ended: {outcome.reason}"})
        for group in status.groups
    ]
    return status.model_copy(
        update={"state": outcome.state, "reason": outcome.reason, "groups": groups}
    )
