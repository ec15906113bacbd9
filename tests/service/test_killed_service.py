"""A service that is killed with SIGKILL at any moment loses nothing and repeats nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSupervisor, specification
from killable import KillableService, run_killable
from running import eventually

from mics_core.spec.status import DriverState, JobEvent
from service.client import MicsClient

TRUE_WITHIN_S = 5.0


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def killable(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KillableService]:
    folder = tmp_path_factory.mktemp("killed")
    url = f"sqlite:///{folder / 'jobs.sqlite3'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_database()
    with run_killable(url, Path(folder)) as running:
        yield running


def jobs_named(service: KillableService, name: str) -> list[dict[str, Any]]:
    jobs = service.client.get("/api/v1/jobs").json()["jobs"]
    return [job for job in jobs if job["name"] == name]


def wait_for(service: KillableService, job_id: str, **wanted: Any) -> dict[str, Any]:
    """Wait for the true state, as long as it may take."""

    def probe() -> dict[str, Any] | None:
        job: dict[str, Any] = service.client.get(f"/api/v1/jobs/{job_id}").json()
        return job if wanted.items() <= job.items() else None

    found: dict[str, Any] = eventually(probe, f"job {job_id} with {wanted}", TRUE_WITHIN_S)
    return found


def submit(service: KillableService, name: str, **changes: Any) -> str:
    answer = service.client.post("/api/v1/jobs", json=specification(name=name, **changes))
    assert answer.status_code == 201, answer.text
    job_id = str(answer.json()["job_id"])
    drivers = service.host.cluster.drivers
    eventually(lambda: job_id in drivers, f"the driver of {name}", TRUE_WITHIN_S)
    return job_id


def supervised(service: KillableService, name: str, **changes: Any) -> tuple[str, FakeSupervisor]:
    job_id = submit(service, name, **changes)
    supervisor = service.host.cluster.start_supervisor(job_id)
    supervisor.train(2)
    wait_for(service, job_id, state="running", step=2)
    return job_id, supervisor


@pytest.mark.parametrize(
    ("method", "when", "is_stored"),
    [("check_layout", "before", False), ("submit", "before", True), ("submit", "after", True)],
)
def test_a_submission_exists_once_or_not_at_all(
    killable: KillableService, method: str, when: Any, is_stored: bool
) -> None:
    name, key = f"{method} {when}", f"{method}-{when}"
    request = {"json": specification(name=name), "headers": {"Idempotency-Key": key}}
    killable.kill_at(
        method, when, "/api/v1/jobs", is_behind_the_answer=method == "submit", **request
    )
    killable.start()
    assert len(jobs_named(killable, name)) == int(is_stored)
    if is_stored:
        # Nobody repeats it, and still it is started: once.
        (job,) = jobs_named(killable, name)
        drivers = killable.host.cluster.drivers
        eventually(lambda: job["job_id"] in drivers, f"the driver of {name}", TRUE_WITHIN_S)
    answer = killable.client.post("/api/v1/jobs", **request)
    assert answer.status_code == 201
    (job,) = jobs_named(killable, name)
    assert answer.json()["job_id"] == job["job_id"]
    # A job that this request has made is handed over behind its answer.
    drivers = killable.host.cluster.drivers
    eventually(lambda: job["job_id"] in drivers, f"the driver of {name}", TRUE_WITHIN_S)
    submitted = [spec.name for spec in killable.host.cluster.submitted.values()]
    assert submitted.count(name) == 1
    supervisor = killable.host.cluster.start_supervisor(job["job_id"])
    supervisor.finish()
    wait_for(killable, job["job_id"], state="finished", source="rest")


def test_a_scale_that_the_job_heard_of_is_shown_and_watchers_miss_nothing(
    killable: KillableService,
) -> None:
    job_id, supervisor = supervised(killable, "scaled")
    seen: list[JobEvent] = []

    def watch() -> None:
        with MicsClient(killable.url, retry_s=0.05, max_retries=1000) as client:
            seen.extend(client.watch(job_id))

    watcher = threading.Thread(target=watch)
    watcher.start()
    killable.kill_at("scale", "after", f"/api/v1/jobs/{job_id}/scale", json={"groups": 4})
    supervisor.train(3)  # it goes on while nobody looks
    killable.start()
    wait_for(killable, job_id, wanted_groups=4, step=5, state="running")
    supervisor.finish()
    watcher.join(20.0)
    assert not watcher.is_alive(), "the watcher was not told the end"
    assert [event.sequence for event in seen] == list(range(1, len(supervisor.history) + 1))
    assert seen == supervisor.history


def test_a_cancel_that_the_job_heard_of_ends_it_even_if_nobody_saw_the_end(
    killable: KillableService,
) -> None:
    job_id, supervisor = supervised(killable, "cancelled")
    killable.kill_at("cancel", "after", f"/api/v1/jobs/{job_id}/cancel")
    assert supervisor.is_cancelling
    killable.host.cluster.kill_supervisor(job_id)
    last_lines = "12:00:00 step 3\n12:00:01 job is cancelled: It was cancelled by Ada."
    killable.host.cluster.set_driver(job_id, DriverState.SUCCEEDED, last_lines)
    killable.start()
    job = wait_for(killable, job_id, state="cancelled")
    assert job["reason"] == "It was cancelled by Ada."


def test_a_cancel_of_a_job_without_a_supervisor_is_carried_out_later(
    killable: KillableService,
) -> None:
    job_id = submit(killable, "never started")
    killable.kill_at("stop_driver", "before", f"/api/v1/jobs/{job_id}/cancel")
    killable.start()
    wait_for(killable, job_id, state="cancelled")
    assert job_id in killable.host.cluster.stopped


def test_a_resume_is_completed_and_the_numbers_of_events_go_on(
    killable: KillableService, tmp_path: Path
) -> None:
    job_id, supervisor = supervised(
        killable, "paused", checkpoint={"directory": str(tmp_path), "resume": False}
    )
    path = f"/api/v1/jobs/{job_id}"
    assert killable.client.post(f"{path}/pause").status_code == 200
    wait_for(killable, job_id, state="paused")
    killable.host.cluster.kill_supervisor(job_id)
    killable.host.cluster.set_driver(job_id, DriverState.SUCCEEDED)
    killable.kill_at("submit", "before", f"{path}/resume")
    killable.start()
    driver_id = f"{job_id}-r1"
    drivers = killable.host.cluster.drivers
    eventually(lambda: driver_id in drivers, "its new driver", TRUE_WITHIN_S)
    again = killable.host.cluster.start_supervisor(job_id)
    assert again.spec.checkpoint.resume, "it has to go on from what it wrote"
    again.steps.extend(supervisor.steps)
    again.finish()
    wait_for(killable, job_id, state="finished", step=10)
    events = killable.client.get(f"{path}/events/list?limit=5000").json()["events"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    states = [event["state"] for event in events if event["kind"] == "state"]
    assert states == ["running", "paused", "pending", "running", "finished"]
    assert [e["record"]["step"] for e in events if e["kind"] == "step"] == list(range(10))
