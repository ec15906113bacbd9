"""Jobs that end, pause or both begin and end while no service listens have their whole history."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeCluster
from running import Service, eventually, run_service

from mics_core.spec.status import DriverState, JobState
from service import unheard
from service.settings import Settings


def events_of(service: Service, job_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = service.client.get(
        f"/api/v1/jobs/{job_id}/events/list?limit=1000"
    ).json()["events"]
    return events


def steps_of(service: Service, job_id: str) -> list[int]:
    found = service.client.get(f"/api/v1/jobs/{job_id}/throughput").json()["records"]
    return [record["step"] for record in found]


def test_a_job_that_ends_unheard_has_every_step_and_its_last_status(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        job_id = service.submit()
        supervisor = cluster.start_supervisor(job_id)
        supervisor.train(2)
        service.wait_for(job_id, step=2)
    supervisor.finish()
    cluster.end_supervisor(job_id)
    cluster.set_driver(job_id, DriverState.SUCCEEDED, "some last line")
    with run_service(settings, cluster) as service:
        job = service.wait_for(job_id, state="finished", step=10)
        assert job["reason"] == "All steps are done."
        assert job["finished"] == supervisor.history[-1].time
        assert job["status"]["step"] == 10
        assert steps_of(service, job_id) == list(range(10))
        told = [event["sequence"] for event in events_of(service, job_id)]
        assert told == list(range(1, len(supervisor.history) + 1))


def test_a_stream_that_was_cut_off_goes_on_to_an_end_that_nobody_heard(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        supervisor = cluster.start_supervisor("by-hand")
        supervisor.train(3)
        service.wait_for("by-hand", step=3)
        seen = len(events_of(service, "by-hand"))
    supervisor.finish()
    cluster.end_supervisor("by-hand")
    with run_service(settings, cluster) as service:
        address, headers = "/api/v1/jobs/by-hand/events", {"Last-Event-ID": str(seen)}
        with service.client.stream("GET", address, headers=headers) as answer:
            told = [line[4:] for line in answer.iter_lines() if line.startswith("id: ")]
    assert list(map(int, told)) == list(range(seen + 1, len(supervisor.history) + 1))


def test_a_job_that_was_paused_unheard_is_paused_and_goes_on(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        job_id = service.submit(checkpoint={"directory": "/nowhere"})
        supervisor = cluster.start_supervisor(job_id)
        supervisor.train(2)
        service.wait_for(job_id, step=2)
    supervisor.train(3)
    supervisor.pause()
    cluster.end_supervisor(job_id)
    cluster.set_driver(job_id, DriverState.SUCCEEDED)
    with run_service(settings, cluster) as service:
        assert service.wait_for(job_id, state="paused")["step"] == 5
        assert service.client.post(f"/api/v1/jobs/{job_id}/resume").status_code == 200
        eventually(lambda: cluster.continuations[job_id], "the driver with which it goes on")
        # What it left when it was paused says nothing of the job as it is now.
        service.wait_for(job_id, state="pending")
        resumed = cluster.start_supervisor(job_id)
        service.wait_for(job_id, state="pending")
        resumed.train(2)
        service.wait_for(job_id, state="running")
    resumed.set_state(JobState.FAILED, "The disk burned down.")
    cluster.end_supervisor(job_id)
    with run_service(settings, cluster) as service:
        assert service.wait_for(job_id, state="failed")["reason"] == "The disk burned down."
        told = [event["sequence"] for event in events_of(service, job_id)]
        assert told == list(range(1, len(told) + 1))


def test_a_job_that_began_and_ended_unheard_is_in_the_list(
    settings: Settings, cluster: FakeCluster
) -> None:
    supervisor = cluster.start_supervisor("by-hand", name="By hand")
    supervisor.finish()
    cluster.end_supervisor("by-hand")
    with run_service(settings, cluster) as service:
        job = service.wait_for("by-hand", state="finished", step=10)
        assert (job["source"], job["name"], job["created"]) == (
            "ray",
            "By hand",
            supervisor.created,
        )
        assert steps_of(service, "by-hand") == list(range(10))


def test_a_deleted_job_does_not_come_back(
    settings: Settings, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start_supervisor("by-hand").finish()
    cluster.end_supervisor("by-hand")
    cluster.start_supervisor("another").finish()
    cluster.end_supervisor("another")
    with run_service(settings, cluster) as service:
        service.wait_for("by-hand", state="finished")
        assert service.client.delete("/api/v1/jobs/by-hand").status_code == 204
    with run_service(settings, cluster) as service:
        # By the time at which the next one is known, this one would be.
        cluster.start_supervisor("later").train(1)
        service.wait_for("later", step=1)
        listed = {job["job_id"] for job in service.client.get("/api/v1/jobs").json()["jobs"]}
    assert listed == {"another", "later"}
    # Nor once it is forgotten that it was deleted: what is as old as that is left where it is.
    when, words = cluster.left["by-hand"]
    cluster.left["old"] = (when - unheard._ADOPTED_WITHIN_S, words)
    with run_service(settings, cluster) as service:
        cluster.start_supervisor("last").train(1)
        service.wait_for("last", step=1)
        assert service.client.get("/api/v1/jobs/old").status_code == 404
