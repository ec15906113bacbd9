"""A driver that is stopped leaves no job behind, whenever that happens; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from mics_core.cluster import driver
from mics_core.cluster.layout import Layout
from mics_core.cluster.reaching import SupervisorGoneError
from mics_core.planner.strategy import Strategy
from mics_core.spec.status import JobEvent, JobState, StateEvent
from tests.cluster.jobs import recorded_job


class Job:
    """Stands in for a job and its supervisor, which may be there or not when the driver stops."""

    def __init__(self) -> None:
        self.is_there = False
        self.reasons: list[str] = []

    def __call__(self, _: str) -> Job:
        """Return itself as the handle of the supervisor."""
        if not self.is_there:
            raise SupervisorGoneError("The job has no supervisor.")
        return self

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        if method == "cancel":
            self.reasons.append(arguments[0])
            return None
        assert method == "events"
        state = JobState.CANCELLED if self.reasons else JobState.RUNNING
        event = StateEvent(sequence=1, time=0.0, state=state, reason="A test.")
        return [event.model_dump(mode="json")]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job()
    layout = Layout(2, Strategy(), recorded_job(None, 10), "A test wants it.")
    monkeypatch.setattr(driver, "settle_layout", lambda _: layout)
    monkeypatch.setattr(driver, "SupervisorHandle", job)
    monkeypatch.setattr(driver, "has_supervisor", lambda _: False)
    return job


STOPS = [(KeyboardInterrupt, "interrupted"), (driver._Terminated, "terminated")]


@pytest.mark.parametrize(("stop", "why"), STOPS)
def test_a_job_whose_driver_is_stopped_while_it_starts_is_cancelled(
    job: Job, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], why: str
) -> None:
    def stopped(*_: object) -> None:
        job.is_there = True
        raise stop

    monkeypatch.setattr(driver, "start_supervisor", stopped)
    assert driver.run_job("job", recorded_job(None, 10)) is JobState.CANCELLED
    assert job.reasons == [f"The driver was {why}."]


@pytest.mark.parametrize(("stop", "why"), STOPS)
def test_a_driver_that_is_stopped_before_there_is_a_job_just_ends(
    job: Job, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], why: str
) -> None:
    def stopped(*_: object) -> None:
        raise stop

    monkeypatch.setattr(driver, "start_supervisor", stopped)
    with pytest.raises(stop):
        driver.run_job("job", recorded_job(None, 10))
    assert job.reasons == []


def test_a_job_whose_driver_is_stopped_while_it_runs_is_cancelled(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        job.is_there = True

    def interrupts(_: JobEvent) -> None:
        if not job.reasons:
            raise KeyboardInterrupt

    monkeypatch.setattr(driver, "start_supervisor", started)
    state = driver.run_job("job", recorded_job(None, 10), on_event=interrupts)
    assert state is JobState.CANCELLED
    assert job.reasons == ["The driver was interrupted."]


def test_a_driver_that_is_stopped_before_its_id_is_found_to_be_taken_cancels_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    job.is_there = True
    monkeypatch.setattr(driver, "has_supervisor", lambda _: True)
    monkeypatch.setattr(driver, "start_supervisor", stopped)
    with pytest.raises(KeyboardInterrupt):
        driver.run_job("taken", recorded_job(None, 10))
    assert job.reasons == []
