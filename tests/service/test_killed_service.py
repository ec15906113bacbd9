"""A service that is killed with SIGKILL at any moment loses nothing and repeats nothing.

Every job is in its true state soon; the clock starts when the next service answers.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSupervisor, specification
from killable import KillableService, run_killable
from postgres import DATABASES, database_of
from running import eventually

from mics_core.errors import ClusterError
from mics_core.spec.status import DriverState, JobEvent, JobState
from service.client import MicsClient

TRUE_WITHIN_S = 5.0
NUM_KILLS = 4
"""Kills of each request at a moment that is drawn."""


@pytest.fixture(scope="module", params=DATABASES)
def killable(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KillableService]:
    folder = tmp_path_factory.mktemp("killed")
    with run_killable(database_of(request, folder), folder) as running:
        yield running


@pytest.fixture(scope="module", params=DATABASES)
def usual(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KillableService]:
    """The same, of which nothing was chosen."""
    folder = tmp_path_factory.mktemp("usual")
    with run_killable(database_of(request, folder), folder, "default") as running:
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


async def refuse(*_asked: Any) -> None:
    raise ClusterError("The Jobs API does not answer.", remedy="Wait.")


def test_many_jobs_are_in_their_true_states_in_the_usual_time(usual: KillableService) -> None:
    cluster = usual.host.cluster
    take = cluster.submit
    running, supervisor = supervised(usual, "runs on")
    ending, last = supervised(usual, "ends meanwhile")
    broken = [submit(usual, f"breaks {number}") for number in range(4)]
    cluster.submit = refuse  # type: ignore[method-assign]
    jobs = [
        usual.client.post("/api/v1/jobs", json=specification(name=f"waits {number}")).json()
        for number in range(10)
    ]
    pending = {job["job_id"] for job in jobs}
    usual.kill()
    cluster.submit = take  # type: ignore[method-assign]
    supervisor.train(3)
    last.finish()
    for job_id in broken:
        cluster.set_driver(job_id, DriverState.FAILED, "OSError: disk full")
    usual.start()
    deadline = time.monotonic() + TRUE_WITHIN_S
    eventually(lambda: cluster.drivers.keys() >= pending, "the drivers of all", TRUE_WITHIN_S)
    wait_for(usual, running, state="running", step=5)
    wait_for(usual, ending, state="finished")
    for job_id in broken:
        wait_for(usual, job_id, state="failed", reason="OSError: disk full")
    assert time.monotonic() < deadline
    names = [spec.name for spec in cluster.submitted.values()]
    assert sorted(name for name in names if name.startswith("waits")) == sorted(
        f"waits {number}" for number in range(10)
    )
    assert not pending & set(cluster.stopped)


# Moments that nobody chose: anywhere between the sending of a request and what follows its answer.


def moments(service: KillableService, seed: int) -> Iterator[float]:
    """Draw delays up to twice the time that the service takes to answer a submission."""
    started = time.monotonic()
    submit(service, f"measured {seed}")
    longest_s = 2 * (time.monotonic() - started)
    drawn = random.Random(seed)
    # One in each quarter of that time, so that few kills meet all parts of it.
    for number in range(NUM_KILLS):
        yield longest_s * (number + drawn.random()) / NUM_KILLS


def test_submissions_killed_at_any_moment_exist_once_or_not_at_all(
    killable: KillableService,
) -> None:
    cluster = killable.host.cluster
    for number, delay_s in enumerate(moments(killable, seed=1)):
        name = f"any moment {number}"
        request = {
            "json": specification(name=name),
            "headers": {"Idempotency-Key": f"any-{number}"},
        }
        was_answered = killable.kill_after(delay_s, "/api/v1/jobs", **request)
        killable.start()
        found = [job["job_id"] for job in jobs_named(killable, name)]
        assert len(found) in ({1} if was_answered else {0, 1}), f"killed after {delay_s} s"
        answer = killable.client.post("/api/v1/jobs", **request)
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["job_id"]
        assert found in ([], [job_id])
        assert [job["job_id"] for job in jobs_named(killable, name)] == [job_id]
        eventually(lambda job_id=job_id: job_id in cluster.drivers, "its driver", TRUE_WITHIN_S)
        assert [spec.name for spec in cluster.submitted.values()].count(name) == 1
        cluster.start_supervisor(job_id).finish()
        wait_for(killable, job_id, state="finished", source="rest")


def test_a_job_scaled_while_the_service_dies_is_shown_as_it_is(killable: KillableService) -> None:
    job_id, supervisor = supervised(killable, "scaled at any moment")
    path = f"/api/v1/jobs/{job_id}"
    for delay_s in moments(killable, seed=2):
        before, wanted = supervisor.wanted, 1 + supervisor.wanted % 4
        was_answered = killable.kill_after(delay_s, f"{path}/scale", json={"groups": wanted})
        assert supervisor.wanted in ({wanted} if was_answered else {before, wanted})
        supervisor.train(1)
        killable.start()
        truth = {"wanted_groups": supervisor.wanted, "step": len(supervisor.steps)}
        wait_for(killable, job_id, state="running", **truth)
    supervisor.finish()
    wait_for(killable, job_id, state="finished")
    events = killable.client.get(f"{path}/events/list?limit=5000").json()["events"]
    expected = [event.model_dump(mode="json") for event in supervisor.history]
    assert [(e["sequence"], e["kind"]) for e in events] == [
        (e["sequence"], e["kind"]) for e in expected
    ]


def test_a_job_cancelled_while_the_service_dies_is_cancelled_once_or_runs_on(
    killable: KillableService,
) -> None:
    for number, delay_s in enumerate(moments(killable, seed=3)):
        job_id, supervisor = supervised(killable, f"cancelled at any moment {number}")
        path = f"/api/v1/jobs/{job_id}/cancel"
        was_answered = killable.kill_after(delay_s, path)
        assert supervisor.is_cancelling or not was_answered
        killable.start()
        wait_for(killable, job_id, state="running", step=2)
        again = killable.client.post(path).status_code
        assert again == 200 or (again == 409 and supervisor.is_cancelling)
        assert supervisor.is_cancelling
        supervisor.set_state(JobState.CANCELLED, "It was cancelled by Ada.")
        wait_for(killable, job_id, state="cancelled", reason="It was cancelled by Ada.")
