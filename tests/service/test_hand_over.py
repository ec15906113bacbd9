"""Jobs that Ray does not take, takes late, or takes without saying so."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCluster, FakeSupervisor, specification
from running import Service, eventually, run_service

from mics_core.errors import ClusterError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import DriverState, JobState
from service.settings import Settings
from service.store import Store

TRUE_WITHIN_S = 5.0
PLACES = (
    "cannot open file:///srv/hidden/app.py, open:/srv/hidden/b, '/srv/hidden c/d' or /srv/hidden"
)


def refuse(words: str = "Ray did not answer in 20 s.") -> Callable[..., Any]:
    """Return a submission that Ray does not take."""

    async def submit(*_asked: Any) -> None:
        raise ClusterError(words, remedy="Wait.")

    return submit


def take_in_silence(cluster: FakeCluster) -> Callable[..., Any]:
    """Return a submission that Ray takes, and whose answer comes too late."""
    take = cluster.submit

    async def submit(*asked: Any) -> None:
        await take(*asked)
        raise ClusterError("Ray did not answer in 20 s.", remedy="Wait.")

    return submit


def post(service: Service, **changes: Any) -> str:
    answer = service.client.post("/api/v1/jobs", json=specification(**changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["job_id"])


def look_again(service: Service) -> None:
    """Wait until the service has looked at the cluster twice more."""
    for number in range(2):
        later = f"seen-{number}-{time.monotonic_ns()}"
        service.cluster.start_supervisor(later).train(1)
        service.wait_for(later, step=1)


def events_of(service: Service, job_id: str) -> list[dict[str, Any]]:
    answer = service.client.get(f"/api/v1/jobs/{job_id}/events/list?limit=5000")
    return list(answer.json()["events"])


def paused_job(service: Service, folder: Path) -> tuple[str, FakeSupervisor]:
    job_id = service.submit(checkpoint={"directory": str(folder)})
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(3)
    service.wait_for(job_id, state="running", step=3)
    assert service.client.post(f"/api/v1/jobs/{job_id}/pause").status_code == 200
    service.wait_for(job_id, state="paused")
    service.cluster.kill_supervisor(job_id)
    service.cluster.set_driver(job_id, DriverState.SUCCEEDED)
    return job_id, supervisor


def test_a_driver_that_comes_up_after_its_job_was_given_up_is_told_to_cancel(
    service: Service,
) -> None:
    service.cluster.submit = refuse()  # type: ignore[method-assign]
    job_id = post(service)
    job = service.wait_for(job_id, state="failed")
    assert job["reason"].startswith("It cannot start: Ray did not answer in 20 s.")
    assert job_id in service.cluster.stopped, "its driver was to be stopped first"
    # A call that was given up has reached Ray after all.
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(1)
    eventually(lambda: supervisor.is_cancelling, "the end of a job that has failed")
    assert service.job(job_id)["state"] == "failed"


def test_a_job_that_should_have_ended_and_does_not_answer_holds_up_no_other(
    service: Service,
) -> None:
    submit, ask = service.cluster.submit, service.cluster.status
    service.cluster.submit = refuse()  # type: ignore[method-assign]
    job_id = post(service)
    service.wait_for(job_id, state="failed")
    is_asked = threading.Event()

    async def status(asked: str) -> Any:
        if asked == job_id:
            is_asked.set()
            await asyncio.sleep(15.0)  # as long as the gateway waits for a supervisor
        return await ask(asked)

    service.cluster.status = status  # type: ignore[method-assign]
    service.cluster.start_supervisor(job_id).train(1)
    assert is_asked.wait(TRUE_WITHIN_S)
    service.cluster.submit = submit  # type: ignore[method-assign]
    other = service.submit()
    service.cluster.set_driver(other, DriverState.FAILED, "OSError: disk full")
    eventually(lambda: service.job(other)["state"] == "failed", "the true state", TRUE_WITHIN_S)


def test_neither_a_job_on_its_way_out_nor_one_of_somebody_else_is_told_to_cancel(
    service: Service,
) -> None:
    told: list[str] = []

    async def cancel(job_id: str) -> None:
        told.append(job_id)

    service.cluster.cancel = cancel  # type: ignore[method-assign,assignment]
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")
    # The id of a job that the service has not started may come back.
    service.cluster.start_supervisor("by-hand").finish()
    service.wait_for("by-hand", state="finished")
    service.cluster.kill_supervisor("by-hand")
    service.cluster.start_supervisor("by-hand").train(1)
    look_again(service)
    assert told == []


def test_a_driver_that_ray_did_not_confirm_is_found_before_its_job_is_given_up(
    settings: Settings, cluster: FakeCluster
) -> None:
    cluster.submit = take_in_silence(cluster)  # type: ignore[method-assign]
    hasty = settings.model_copy(update={"start_patience_s": 0.0})
    with run_service(hasty, cluster) as service:
        job_id = service.submit()
        look_again(service)
        assert service.job(job_id)["state"] == "pending"
        cluster.start_supervisor(job_id).finish()
        service.wait_for(job_id, state="finished")
    assert cluster.stopped == []


def test_time_without_a_service_does_not_count_as_a_refusal(
    settings: Settings, cluster: FakeCluster
) -> None:
    take = cluster.submit
    cluster.submit = refuse()  # type: ignore[method-assign]
    with run_service(settings.model_copy(update={"start_patience_s": 60.0}), cluster) as service:
        job_id = post(service)
        created = service.job(job_id)["created"]
    patience_s = settings.start_patience_s
    eventually(lambda: time.time() > created + patience_s, "the time for which nobody serves")
    refusals = iter([True])

    async def refuse_once(*asked: Any) -> None:
        await (refuse() if next(refusals, False) else take)(*asked)

    cluster.submit = refuse_once  # type: ignore[method-assign]
    with run_service(settings, cluster) as service:
        eventually(lambda: job_id in cluster.drivers, "its driver")
        assert next(refusals, None) is None, "it was refused once before"
        cluster.start_supervisor(job_id).finish()
        service.wait_for(job_id, state="finished")


@pytest.mark.parametrize("answer", ["a refusal", "none"])
def test_jobs_that_ray_does_not_take_hold_up_no_other(
    settings: Settings, cluster: FakeCluster, answer: str
) -> None:
    take, patient = cluster.submit, settings.model_copy(update={"start_patience_s": 60.0})

    async def wait_for_ever(*_asked: Any) -> None:
        await asyncio.Event().wait()

    with run_service(patient, cluster) as service:
        fine = service.submit(name="fine")
        cluster.submit = refuse()  # type: ignore[method-assign]
        stuck = [post(service, name="stuck") for _ in range(6)]
    if answer == "none":
        cluster.submit = wait_for_ever  # type: ignore[method-assign]
    with run_service(patient, cluster) as service:
        cluster.set_driver(fine, DriverState.FAILED, "OSError: disk full")
        begin = time.monotonic()
        service.wait_for(fine, state="failed", reason="OSError: disk full")
        assert time.monotonic() - begin < TRUE_WITHIN_S
        assert {service.job(job_id)["state"] for job_id in stuck} == {"pending"}
    cluster.submit = take  # type: ignore[method-assign]


def test_a_driver_that_cannot_be_asked_after_holds_up_no_other_job(service: Service) -> None:
    cluster, ask = service.cluster, service.cluster.driver_status
    fine, *stuck = [service.submit() for _ in range(7)]

    async def driver_status(driver_id: str) -> Any:
        if driver_id in stuck:
            raise ClusterError("The Jobs API does not answer.", remedy="Wait.")
        return await ask(driver_id)

    cluster.driver_status = driver_status  # type: ignore[method-assign]
    cluster.set_driver(fine, DriverState.FAILED, "OSError: disk full")
    service.wait_for(fine, state="failed")
    assert {service.job(job_id)["state"] for job_id in stuck} == {"pending"}


def test_a_job_is_cancelled_before_it_was_handed_over(service: Service) -> None:
    take, is_refused = service.cluster.submit, threading.Event()

    async def submit(*asked: Any) -> None:
        is_refused.set()
        await refuse()(*asked)

    service.cluster.submit = submit  # type: ignore[method-assign]
    job_id = post(service)
    assert is_refused.wait(TRUE_WITHIN_S)
    assert service.client.post(f"/api/v1/jobs/{job_id}/cancel").status_code == 200
    job = service.wait_for(job_id, state="cancelled")
    assert job["reason"] == "It was cancelled before it was started."
    service.cluster.submit = take  # type: ignore[method-assign]
    look_again(service)
    assert job_id not in service.cluster.drivers


def test_many_submissions_are_handed_over_a_few_at_a_time(service: Service) -> None:
    cluster, take, may_go_on = service.cluster, service.cluster.submit, threading.Event()
    num_now, most = 0, 0

    async def slow_submit(*asked: Any) -> None:
        nonlocal num_now, most
        num_now += 1
        most = max(most, num_now)
        while not may_go_on.is_set():
            await asyncio.sleep(0.01)
        num_now -= 1
        await take(*asked)

    cluster.submit = slow_submit  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: post(service), range(60)))
    begin = time.monotonic()
    answer = service.client.get("/api/v1/jobs?limit=100")
    assert answer.status_code == 200
    assert time.monotonic() - begin < TRUE_WITHIN_S
    assert len(answer.json()["jobs"]) == len(jobs)
    assert most == 4
    may_go_on.set()
    eventually(lambda: cluster.drivers.keys() >= set(jobs), "the drivers of all")
    assert most == 4


def test_a_resume_that_ray_did_not_confirm_goes_on_without_a_lost_event(
    service: Service, tmp_path: Path
) -> None:
    job_id, before = paused_job(service, tmp_path)
    service.cluster.submit = take_in_silence(service.cluster)  # type: ignore[method-assign]
    answer = service.client.post(f"/api/v1/jobs/{job_id}/resume")
    assert (answer.status_code, answer.json()["state"]) == (200, "pending")
    again = service.cluster.start_supervisor(job_id)
    again.steps.extend(before.steps)
    again.finish()
    assert service.wait_for(job_id, state="finished")["step"] == 10
    events = events_of(service, job_id)
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    states = [event["state"] for event in events if event["kind"] == "state"]
    assert states == ["running", "paused", "pending", "running", "finished"]
    assert events[-1]["sequence"] == again.history[-1].sequence


def test_a_job_whose_resumption_ray_keeps_refusing_is_paused_again(
    service: Service, tmp_path: Path
) -> None:
    job_id, _ = paused_job(service, tmp_path)
    take = service.cluster.submit
    service.cluster.submit = refuse()  # type: ignore[method-assign]
    path = f"/api/v1/jobs/{job_id}/resume"
    assert service.client.post(path).json()["state"] == "pending"
    job = service.wait_for(job_id, state="paused")
    assert job["reason"] == "It could not be resumed: Ray did not answer in 20 s. Wait."
    assert f"{job_id}-r1" in service.cluster.stopped
    service.cluster.submit = take  # type: ignore[method-assign]
    assert service.client.post(path).status_code == 200
    eventually(lambda: f"{job_id}-r2" in service.cluster.drivers, "its next driver")


def test_only_the_newest_driver_that_is_not_handed_over_is_given_up(database_url: str) -> None:
    store = Store(database_url)
    spec = parse_job_spec(specification())

    def give_up(submission: int) -> list[str]:
        told = store.give_up_driver("a", submission, JobState.PAUSED, "It is refused.", 2.0)
        return [event.kind for event in told]

    store.add_job("a", spec, source="rest", created=1.0, reason="Sent.", handed_over=False)
    store.note_handed_over("a", 0)
    assert give_up(0) == [], "the cluster has it"
    store.close_job("a", JobState.PAUSED, "It was paused.", 2.0, None)
    store.resume_job("a", 3.0, "It is resumed.")
    store.note_handed_over("a", 0)
    job = store.open_job("a")
    assert job is not None
    assert not job.handed_over, "that was the driver before"
    assert give_up(0) == []
    assert give_up(1) == ["state"]
    assert give_up(1) == [], "it is not pending any more"
    store.close()


@pytest.mark.parametrize("what", ["a submission", "a resumption", "a resumption without a cluster"])
def test_a_reason_in_rays_words_names_no_path(service: Service, tmp_path: Path, what: str) -> None:
    cluster, refused = service.cluster, refuse(f"Ray could not submit: {PLACES}.")
    if what == "a submission":
        cluster.submit = refused  # type: ignore[method-assign]
        job_id, state = post(service), "failed"
    else:
        (job_id, _), state = paused_job(service, tmp_path), "paused"
        cluster.submit = refused  # type: ignore[method-assign]
        if what == "a resumption without a cluster":
            cluster.driver_status = refused  # type: ignore[method-assign]
        service.client.post(f"/api/v1/jobs/{job_id}/resume")
    job = eventually(
        lambda: (job := service.job(job_id))["state"] == state and job, f"its being {state}"
    )
    assert "Ray could not submit" in job["reason"]
    for path in (f"/{job_id}", "", f"/{job_id}/events/list"):
        text = service.client.get(f"/api/v1/jobs{path}").text
        assert "/srv/hidden" not in text, path
