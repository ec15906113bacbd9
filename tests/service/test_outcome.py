"""How a job ended whose supervisor says no more: decided without I/O."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeSupervisor, specification

from mics_core.spec import parse_job_spec
from mics_core.spec.status import DriverState, DriverStatus, GroupState, JobState
from service.outcome import Outcome, Patience, closed_status, decide_outcome, last_error
from service.rows import OpenJob

PATIENCE = Patience(start_s=60.0, lost_s=10.0)

TRACEBACK = """\
Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):
Traceback (most recent call last):
  File "/somewhere/driver.py", line 10, in main
    spec = load()
mics_core.errors.SpecificationError: training.steps: -1 is refused: it must be positive.
\x1b[36m(raylet)\x1b[0m a line of somebody else
"""


def supervisor(num_steps: int = 4) -> FakeSupervisor:
    playing = FakeSupervisor("a", parse_job_spec(specification()))
    playing.train(num_steps)
    return playing


def job(**changes: Any) -> OpenJob:
    values: dict[str, Any] = {
        "job_id": "a",
        "source": "rest",
        "state": JobState.RUNNING,
        "created": 0.0,
        "step": 4,
        "steps": 10,
        "cancel_requested": False,
        "handed_over": True,
        "submission": 0,
        "last_sequence": 0,
        "status": supervisor().status(),
    }
    return OpenJob(**values | changes)


def driver(state: DriverState, message: str = "") -> DriverStatus:
    return DriverStatus(state=state, message=message)


@pytest.mark.parametrize("state", [DriverState.PENDING, DriverState.RUNNING])
def test_a_living_driver_may_still_bring_a_supervisor(state: DriverState) -> None:
    assert decide_outcome(job(), driver(state), 1e6, PATIENCE) is None


def test_a_failed_driver_fails_the_job_with_its_own_error() -> None:
    outcome = decide_outcome(job(), driver(DriverState.FAILED, TRACEBACK), 0.0, PATIENCE)
    assert outcome == Outcome(
        JobState.FAILED,
        "SpecificationError: training.steps: -1 is refused: it must be positive.",
    )


def test_a_stopped_driver_cancels_the_job() -> None:
    outcome = decide_outcome(job(), driver(DriverState.STOPPED), 0.0, PATIENCE)
    assert outcome == Outcome(JobState.CANCELLED, "Its driver was stopped at step 4 of 10.")


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"step": 10}, JobState.FINISHED, "All 10 steps are done."),
        ({"cancel_requested": True}, JobState.CANCELLED, "cancelled through the service"),
        ({}, JobState.FINISHED, "after step 4 of 10"),
    ],
)
def test_a_driver_that_succeeded_is_believed(
    changes: dict[str, Any], state: JobState, words: str
) -> None:
    outcome = decide_outcome(job(**changes), driver(DriverState.SUCCEEDED), 0.0, PATIENCE)
    assert outcome is not None
    assert outcome.state is state
    assert words in outcome.reason


def test_the_supervisors_last_word_goes_before_the_drivers() -> None:
    playing = supervisor()
    playing.set_state(JobState.CANCELLED, "Somebody cancelled it.")
    told = job(status=playing.status())
    outcome = decide_outcome(told, driver(DriverState.FAILED, "exit code 1"), 0.0, PATIENCE)
    assert outcome == Outcome(JobState.CANCELLED, "Somebody cancelled it.")


@pytest.mark.parametrize(
    ("changes", "patience_s", "state", "words"),
    [
        ({}, 10.0, JobState.FAILED, "supervisor is gone since step 4 of 10"),
        ({"status": None}, 60.0, JobState.FAILED, "never started"),
        ({"status": None, "cancel_requested": True}, 60.0, JobState.CANCELLED, "cancelled"),
    ],
)
def test_without_a_driver_patience_decides(
    changes: dict[str, Any], patience_s: float, state: JobState, words: str
) -> None:
    assert decide_outcome(job(**changes), None, patience_s - 0.1, PATIENCE) is None
    outcome = decide_outcome(job(**changes), None, patience_s, PATIENCE)
    assert outcome is not None
    assert outcome.state is state
    assert words in outcome.reason


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", "Its driver failed without a word."),
        ("/bin/sh: 1: python: not found\n\n", "/bin/sh: 1: python: not found"),
        ("KeyError: 'x'\nmore\nray.exceptions.RayTaskError: y", "RayTaskError: y"),
        ("12:00:01 LayoutError: p is 3.\n12:00:02 bye", "LayoutError: p is 3."),
        ("\x1b[31mValueError: red\x1b[0m", "ValueError: red"),
    ],
)
def test_the_last_error_is_found_in_a_drivers_output(message: str, expected: str) -> None:
    assert last_error(message) == expected


def test_no_partition_group_outlives_its_job() -> None:
    status = closed_status(supervisor().status(), Outcome(JobState.FAILED, "Its driver died."))
    assert (status.state, status.reason) == (JobState.FAILED, "Its driver died.")
    assert {group.state for group in status.groups} == {GroupState.LOST}
    assert "Its driver died." in status.groups[0].reason


@pytest.mark.parametrize("word", ["finished", "cancelled", "failed", "paused"])
@pytest.mark.parametrize("state", [DriverState.SUCCEEDED, DriverState.FAILED])
def test_the_last_state_that_a_driver_logged_is_believed(state: DriverState, word: str) -> None:
    message = (
        "12:00:00 job is running: Training with 2 partition groups.\n"
        f"12:00:05 \x1b[1mjob is {word}: It was so at step 4.\x1b[0m\n"
        "RuntimeError: what other processes say afterwards"
    )
    outcome = decide_outcome(job(), DriverStatus(state=state, message=message), 0.0, PATIENCE)
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (JobState(word), "It was so at step 4.")


def test_a_state_that_was_followed_by_another_is_not_the_last() -> None:
    message = "job is waiting: One group is ready.\njob is running: Training."
    driver = DriverStatus(state=DriverState.FAILED, message=f"{message}\nOSError: disk full")
    outcome = decide_outcome(job(), driver, 0.0, PATIENCE)
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (JobState.FAILED, "OSError: disk full")
