"""The store stays true to the cluster: jobs are found, followed, and closed when they are gone."""

from __future__ import annotations

from fakes import FakeCluster
from running import Service, run_service

from mics_core.spec.status import DriverState
from service.settings import Settings


def test_a_job_that_somebody_else_started_appears(service: Service) -> None:
    supervisor = service.cluster.start_supervisor("by-hand", name="By hand")
    supervisor.train(3)
    job = service.wait_for("by-hand", state="running", step=3)
    assert (job["source"], job["name"], job["created"]) == ("ray", "By hand", supervisor.created)
    supervisor.finish()
    assert service.wait_for("by-hand", state="finished")["step"] == 10


def test_a_driver_that_fails_before_it_has_a_supervisor_fails_the_job(service: Service) -> None:
    job_id = service.submit()
    message = (
        "exit code 1, last logs:\nTraceback\n  File x\nmics_core.errors.DataError: no samples."
    )
    service.cluster.set_driver(job_id, DriverState.FAILED, message)
    job = service.wait_for(job_id, state="failed")
    assert job["reason"] == "DataError: no samples."
    assert job["finished"] is not None


def test_a_vanished_supervisor_with_a_failed_driver_fails_the_job(service: Service) -> None:
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).train(4)
    service.wait_for(job_id, step=4, tokens_per_s=2048.0)
    service.cluster.set_driver(job_id, DriverState.FAILED, "RuntimeError: the node burned down")
    service.cluster.kill_supervisor(job_id)
    job = service.wait_for(job_id, state="failed")
    assert job["reason"] == "RuntimeError: the node burned down"
    assert job["status"]["state"] == "failed"
    assert {group["state"] for group in job["status"]["groups"]} == {"lost"}


def test_a_vanished_supervisor_without_a_driver_fails_the_job(service: Service) -> None:
    service.cluster.start_supervisor("by-hand").train(4)
    service.wait_for("by-hand", step=4, tokens_per_s=2048.0)
    service.cluster.kill_supervisor("by-hand")
    assert "gone since step 4 of 10" in service.wait_for("by-hand", state="failed")["reason"]


def test_a_supervisor_that_comes_back_is_followed_on(service: Service) -> None:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(2)
    service.wait_for(job_id, step=2)
    service.cluster.kill_supervisor(job_id)
    supervisor.train(1)
    service.cluster.supervisors[job_id] = supervisor
    supervisor.finish()
    assert service.wait_for(job_id, state="finished")["step"] == 10


def test_an_unreachable_cluster_closes_no_job(service: Service) -> None:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(2)
    service.wait_for(job_id, step=2)
    service.cluster.is_reachable = False
    supervisor.train(3)
    assert service.client.get("/healthz").json()["status"] == "degraded"
    assert service.job(job_id)["state"] == "running"
    service.cluster.is_reachable = True
    service.wait_for(job_id, state="running", step=5)


def test_a_restarted_service_has_the_history_and_follows_on(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings, cluster) as service:
        ended, living, vanishing = service.submit(), service.submit(), service.submit()
        cluster.start_supervisor(ended).finish()
        cluster.start_supervisor(living).train(2)
        cluster.start_supervisor(vanishing).train(2)
        service.wait_for(ended, state="finished")
        service.wait_for(living, step=2)
        service.wait_for(vanishing, step=2)
    cluster.supervisors[living].train(3)
    cluster.set_driver(vanishing, DriverState.FAILED, "OSError: disk full")
    cluster.kill_supervisor(vanishing)
    cluster.kill_supervisor(ended)
    with run_service(settings, cluster) as service:
        assert len(service.client.get("/api/v1/jobs").json()["jobs"]) == 3
        service.wait_for(living, state="running", step=5)
        assert service.wait_for(vanishing, state="failed")["reason"] == "OSError: disk full"
        assert service.job(ended)["state"] == "finished"
        records = service.client.get(f"/api/v1/jobs/{living}/throughput").json()["records"]
        assert [record["step"] for record in records] == list(range(5))


def test_a_service_without_a_cluster_starts_and_finds_it_later(
    settings: Settings, cluster: FakeCluster
) -> None:
    cluster.is_reachable = False
    with run_service(settings, cluster) as service:
        assert service.client.get("/healthz").json()["status"] == "degraded"
        cluster.start_supervisor("waiting").train(1)
        cluster.is_reachable = True
        service.wait_for("waiting", step=1)
