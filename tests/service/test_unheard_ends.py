"""Jobs that end, pause or both begin and end while no service listens have their whole history."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeCluster
from postgres import PostgresServer
from running import Service, eventually, run_service

from mics_core.spec.status import DriverState, JobState
from service import unheard
from service.settings import Settings


def events_of(service: Service, job_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = service.client.get(
        f"/api/v1/jobs/{job_id}/events/list?limit=1000"
    ).json()["events"]
    return events


def look_twice(service: Service) -> None:
    """Wait until the service has compared the cluster with its store twice from now on."""
    for number in range(2):
        name = f"seen-{len(service.cluster.supervisors)}-{number}"
        service.cluster.start_supervisor(name).train(1)
        service.wait_for(name, step=1)


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
        # What it left when it was paused says nothing of the job as it is now, and is not read.
        read = len(cluster.read_words)
        look_twice(service)
        assert service.job(job_id)["state"] == "pending"
        assert len(cluster.read_words) == read == 1
        resumed = cluster.start_supervisor(job_id)
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


def test_words_that_cannot_be_read_hold_up_no_other_job(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        heard = service.submit()
        cluster.start_supervisor(heard).train(2)
        service.wait_for(heard, step=2)
    for job_id in (heard, "stranger", "readable"):
        supervisor = cluster.supervisors.get(job_id) or cluster.start_supervisor(job_id)
        supervisor.finish()
        cluster.end_supervisor(job_id)
    cluster.unreadable = {heard, "stranger"}
    with run_service(settings, cluster) as service:
        service.wait_for("readable", state="finished", step=10)
        eventually(lambda: cluster.read_words.count("stranger") == 3, "the last attempt")
        # Its end is told all the same, as far as its driver knows it.
        cluster.set_driver(heard, DriverState.FAILED, "OSError: disk full")
        assert service.wait_for(heard, state="failed")["reason"] == "OSError: disk full"
        look_twice(service)
        assert {job_id: cluster.read_words.count(job_id) for job_id in (heard, "stranger")} == {
            heard: 3,
            "stranger": 3,
        }
        assert service.client.get("/healthz").json()["status"] == "ok"
        assert service.client.get("/api/v1/jobs/stranger").status_code == 404


def test_two_services_take_a_history_in_once(
    postgres: PostgresServer, settings: Settings, cluster: FakeCluster
) -> None:
    settings = settings.model_copy(update={"database_url": postgres.new_database_with_tables()})
    supervisor = cluster.start_supervisor("by-hand")
    supervisor.finish()
    cluster.end_supervisor("by-hand")
    with run_service(settings, cluster) as one, run_service(settings, cluster) as other:
        for service in (one, other):
            service.wait_for("by-hand", state="finished", step=10)
        told = [event["sequence"] for event in events_of(other, "by-hand")]
        assert told == list(range(1, len(supervisor.history) + 1))


def test_a_paused_job_that_another_service_has_finished_is_finished(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        supervisor = cluster.start_supervisor("by-hand")
        supervisor.train(2)
        supervisor.pause()
        service.wait_for("by-hand", state="paused")
        cluster.end_supervisor("by-hand")
        # Goes on elsewhere, unheard here, with the numbers of its events counting on.
        supervisor.set_state(JobState.RUNNING, "It goes on.")
        supervisor.finish()
        cluster.supervisors["by-hand"] = supervisor
        cluster.end_supervisor("by-hand")
        assert service.wait_for("by-hand", state="finished")["step"] == 10
