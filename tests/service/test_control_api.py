"""Scaling and cancelling, through HTTP."""

from __future__ import annotations

import threading

import httpx
from fakes import FakeSupervisor
from running import Service, eventually

from mics_core.spec.status import DriverState, JobState


def scale(service: Service, job_id: str, groups: object) -> httpx.Response:
    return service.client.post(f"/api/v1/jobs/{job_id}/scale", json={"groups": groups})


def cancel(service: Service, job_id: str) -> httpx.Response:
    return service.client.post(f"/api/v1/jobs/{job_id}/cancel")


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def running_job(service: Service) -> tuple[str, FakeSupervisor]:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(2)
    service.wait_for(job_id, state="running", step=2)
    return job_id, supervisor


def test_scaling_a_running_job_shows_at_once(service: Service) -> None:
    job_id, supervisor = running_job(service)
    answer = scale(service, job_id, 4)
    assert (answer.status_code, answer.json()["wanted_groups"]) == (200, 4)
    assert supervisor.wanted == 4


def test_scaling_beyond_the_bounds_is_refused_with_the_bounds(service: Service) -> None:
    job_id, supervisor = running_job(service)
    answer = scale(service, job_id, 5)
    assert code(answer) == (409, "scale_out_of_bounds")
    assert "5 partition groups" in answer.json()["error"]["message"]
    assert "1 to 4" in answer.json()["error"]["message"]
    assert supervisor.wanted == 2


def test_only_whole_positive_numbers_scale(service: Service) -> None:
    job_id, _ = running_job(service)
    for groups in (0, -1, 1.5, "2", True, None, [2], 10**30):
        answer = scale(service, job_id, groups)
        assert code(answer) == (422, "invalid_request"), groups
        assert answer.json()["error"]["field"] == "groups"


def test_scaling_waits_for_a_supervisor_that_is_just_starting(service: Service) -> None:
    job_id = service.submit()
    starting = threading.Timer(0.1, service.cluster.start_supervisor, [job_id])
    starting.start()
    assert scale(service, job_id, 3).status_code == 200
    starting.join()
    assert service.cluster.supervisors[job_id].wanted == 3


def test_scaling_a_job_that_does_not_start_says_to_try_again(service: Service) -> None:
    answer = scale(service, service.submit(), 3)
    assert code(answer) == (409, "job_conflict")
    assert "Try again" in answer.json()["error"]["remedy"]


def test_a_finished_job_can_be_neither_scaled_nor_cancelled(service: Service) -> None:
    job_id, supervisor = running_job(service)
    supervisor.finish()
    service.wait_for(job_id, state="finished")
    assert code(scale(service, job_id, 3)) == (409, "job_conflict")
    assert code(cancel(service, job_id)) == (409, "job_conflict")


def test_a_second_cancel_is_refused(service: Service) -> None:
    job_id, supervisor = running_job(service)
    assert cancel(service, job_id).status_code == 200
    assert code(cancel(service, job_id)) == (409, "job_conflict")
    supervisor.set_state(JobState.CANCELLED, "It was cancelled.")
    service.wait_for(job_id, state="cancelled")
    assert code(cancel(service, job_id)) == (409, "job_conflict")


def test_cancelling_before_the_supervisor_is_up_stops_the_driver(service: Service) -> None:
    job_id = service.submit()
    assert cancel(service, job_id).status_code == 200
    assert job_id in service.cluster.stopped
    job = service.wait_for(job_id, state="cancelled")
    assert job["reason"] == "It was cancelled before it trained."


def test_a_supervisor_of_a_driver_that_escaped_its_end_is_told_to_cancel(service: Service) -> None:
    job_id = service.submit()
    assert cancel(service, job_id).status_code == 200
    service.wait_for(job_id, state="cancelled")
    # Ray stopped the driver while it was being started, and its process ran on.
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(1)
    eventually(lambda: supervisor.is_cancelling, "the second word of the cancel")
    supervisor.set_state(JobState.CANCELLED, "It was cancelled.")
    assert service.job(job_id)["state"] == "cancelled"


def test_a_supervisor_that_comes_up_after_the_cancel_is_told(service: Service) -> None:
    job_id = service.submit()
    service.cluster.drivers[job_id] = service.cluster.drivers[job_id].model_copy(
        update={"state": DriverState.RUNNING}
    )
    service.cluster.stop_driver = _ignore  # type: ignore[method-assign,assignment]
    assert cancel(service, job_id).status_code == 200
    assert code(cancel(service, job_id)) == (409, "job_conflict")
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(1)
    service.wait_for(job_id, step=1)
    assert supervisor.is_cancelling


def test_a_cancel_that_the_cluster_did_not_hear_can_be_repeated(service: Service) -> None:
    job_id = service.submit()
    service.cluster.is_reachable = False
    assert code(cancel(service, job_id)) == (503, "cluster_unavailable")
    service.cluster.is_reachable = True
    assert cancel(service, job_id).status_code == 200


async def _ignore(_job_id: str) -> None:
    """A driver that does not stop."""
