"""What a team needs of the API: keys, pages, labels, deletion, history, pause, logs, nodes."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeCluster, FakeSupervisor, specification
from postgres import MissingServerError, run_postgres
from running import Service, eventually, run_service

from mics_core.errors import SpecificationError
from mics_core.spec.nodes import LogSource
from mics_core.spec.status import CheckpointEvent, DriverState, GroupStatus, JobStatus, WorkerStatus
from service.app import build_app
from service.client import MicsClient
from service.settings import Settings


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def running_job(service: Service, **changes: Any) -> tuple[str, FakeSupervisor]:
    job_id = service.submit(**changes)
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(3)
    service.wait_for(job_id, state="running", step=3, tokens_per_s=2048.0)
    return job_id, supervisor


def test_the_same_key_gives_the_same_job_also_after_a_restart(
    settings: Settings, cluster: FakeCluster
) -> None:
    headers = {"Idempotency-Key": "one"}
    with run_service(settings, cluster) as service:
        first = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
        again = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.headers["location"] == first.headers["location"]
    cluster.is_reachable = False  # the answer needs no cluster
    with run_service(settings, cluster) as service:
        again = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
        assert again.json()["job_id"] == first.json()["job_id"]
        other = specification(name="Another")
        refused = service.client.post("/api/v1/jobs", json=other, headers=headers)
        assert code(refused) == (422, "idempotency_key_reused")
        assert first.json()["job_id"] in refused.json()["error"]["message"]
        for bad in ("", "a b", "x" * 256):
            answer = service.client.post(
                "/api/v1/jobs", json=specification(), headers={"Idempotency-Key": bad}
            )
            assert code(answer) == (422, "invalid_request"), bad
    assert len(cluster.submitted) == 1


def test_a_key_of_a_refused_submission_can_be_used_again(service: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    service.cluster.is_reachable = False
    answer = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
    assert code(answer) == (503, "cluster_unavailable")
    service.cluster.is_reachable = True
    answer = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
    assert answer.status_code == 201


def test_the_list_is_paged_and_filtered_by_label(service: Service) -> None:
    ids = [service.submit(labels={"team": "ab"[number % 2]}) for number in range(5)]
    found, cursor, num_pages = [], None, 0
    while num_pages == 0 or cursor:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = service.client.get("/api/v1/jobs", params=query).json()
        found += [job["job_id"] for job in page["jobs"]]
        cursor, num_pages = page["next_cursor"], num_pages + 1
    assert (found, num_pages) == (ids[::-1], 3)
    labelled = service.client.get("/api/v1/jobs?label=team:b").json()["jobs"]
    assert [job["job_id"] for job in labelled] == [ids[3], ids[1]]
    assert labelled[0]["labels"] == {"team": "b"}
    assert labelled[0]["owner"] is None
    assert service.client.get("/api/v1/jobs?label=team:b&label=x:y").json()["jobs"] == []
    assert service.client.get("/api/v1/jobs?owner=ada").json()["jobs"] == []
    for query in ("label=team", "label=:b", "cursor=nonsense", "owner=%00", "label=a:%00"):
        answer = service.client.get(f"/api/v1/jobs?{query}")
        assert answer.status_code == 422, query
        assert answer.json()["error"]["remedy"]


@pytest.mark.parametrize(
    "labels",
    [{"-x": "y"}, {"x" * 64: "y"}, {"x": "y" * 201}, {"x": "ä"}, {str(n): "" for n in range(33)}],
)
def test_labels_that_break_a_rule_are_named(service: Service, labels: dict[str, str]) -> None:
    answer = service.client.post("/api/v1/jobs", json=specification(labels=labels))
    assert code(answer) == (422, "invalid_specification")
    assert answer.json()["error"]["field"].startswith("labels")


def test_the_record_of_an_ended_job_can_be_deleted(service: Service) -> None:
    job_id, supervisor = running_job(service)
    assert code(service.client.delete(f"/api/v1/jobs/{job_id}")) == (409, "job_conflict")
    supervisor.finish()
    service.wait_for(job_id, state="finished")
    assert service.client.delete(f"/api/v1/jobs/{job_id}").status_code == 204
    assert code(service.client.delete(f"/api/v1/jobs/{job_id}")) == (404, "job_not_found")
    # Its supervisor is still seen, and another job that comes later shows that it was looked for.
    other, _ = running_job(service)
    assert [job["job_id"] for job in service.client.get("/api/v1/jobs").json()["jobs"]] == [other]


def test_bounds_can_be_changed_with_or_without_the_number(service: Service) -> None:
    job_id, supervisor = running_job(service)
    path = f"/api/v1/jobs/{job_id}/scale"
    answer = service.client.post(path, json={"maximum": 3, "minimum": 3})
    assert (answer.status_code, answer.json()["wanted_groups"]) == (200, 3)
    assert answer.json()["maximum_groups"] == 3
    assert answer.json()["status"]["minimum_groups"] == 3
    assert supervisor.wanted == 3
    assert code(service.client.post(path, json={"groups": 2})) == (409, "scale_out_of_bounds")
    crossed = service.client.post(path, json={"minimum": 4})
    assert code(crossed) == (409, "scale_out_of_bounds")
    assert "leave no number" in crossed.json()["error"]["message"]
    too_many = service.client.post(path, json={"maximum": 5})
    assert "4 micro-batches" in too_many.json()["error"]["message"]
    assert service.client.post(path, json={"groups": 1, "minimum": 1}).status_code == 200


def test_a_job_without_checkpoints_cannot_be_paused(service: Service) -> None:
    job_id, _ = running_job(service)
    answer = service.client.post(f"/api/v1/jobs/{job_id}/pause")
    assert code(answer) == (409, "job_conflict")
    assert "checkpoint.directory" in answer.json()["error"]["remedy"]
    assert code(service.client.post(f"/api/v1/jobs/{job_id}/resume")) == (409, "job_conflict")


def paused_job(service: Service, folder: Path) -> tuple[str, FakeSupervisor]:
    job_id, supervisor = running_job(service, checkpoint={"directory": str(folder)})
    assert service.client.post(f"/api/v1/jobs/{job_id}/scale", json={"groups": 3}).is_success
    assert service.client.post(f"/api/v1/jobs/{job_id}/pause").status_code == 200
    service.wait_for(job_id, state="paused", finished=None)
    service.cluster.kill_supervisor(job_id)
    service.cluster.set_driver(job_id, DriverState.SUCCEEDED)
    return job_id, supervisor


def test_a_paused_job_stays_so_until_it_is_resumed_with_its_groups(
    service: Service, tmp_path: Path
) -> None:
    job_id, supervisor = paused_job(service, tmp_path)
    path = f"/api/v1/jobs/{job_id}"
    for verb, body in (("scale", {"groups": 2}), ("pause", None)):
        answer = service.client.post(f"{path}/{verb}", json=body)
        assert code(answer) == (409, "job_conflict")
        assert answer.json()["error"]["remedy"] == "Resume it first."
    # A job that somebody else starts is seen in a later look, and none of them has closed this one.
    service.cluster.start_supervisor("later").train(1)
    service.wait_for("later", step=1)
    assert service.job(job_id)["state"] == "paused"
    service.cluster.is_reachable = False
    answer = service.client.post(f"{path}/resume")
    assert code(answer) == (503, "cluster_unavailable")
    assert service.job(job_id)["state"] == "paused"
    service.cluster.is_reachable = True
    resumed = service.client.post(f"{path}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (200, "pending")
    eventually(lambda: service.cluster.continuations[job_id], "the driver of the resumed job")
    again = service.cluster.start_supervisor(job_id)
    assert again.wanted == 3
    again.steps.extend(supervisor.steps)
    again.finish()
    assert service.wait_for(job_id, state="finished")["step"] == 10
    with MicsClient(str(service.client.base_url)) as client:
        events = list(client.watch(job_id))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_a_paused_job_can_be_cancelled(service: Service, tmp_path: Path) -> None:
    job_id, _ = paused_job(service, tmp_path)
    answer = service.client.post(f"/api/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert answer.json()["reason"] == "It was cancelled while it was paused."


def placed(status: JobStatus) -> JobStatus:
    worker = WorkerStatus(rank=1, node_id="n0", host="10.0.0.4", pid=77, step=3)
    group = GroupStatus(group_id=0, state="member", reason="It trains.", workers=[worker])
    return status.model_copy(update={"groups": [group]})


def test_events_checkpoints_placement_and_cluster_are_shown(service: Service) -> None:
    job_id, supervisor = running_job(service)
    saved = {"step": 3, "path": "/checkpoints/run/step-3", "error": ""}
    supervisor._tell(CheckpointEvent, **saved)
    path = f"/api/v1/jobs/{job_id}"
    whole = eventually(
        lambda: service.client.get(f"{path}/checkpoints").json()["checkpoints"], "the checkpoint"
    )
    assert whole == [saved | {"error": None, "time": supervisor.history[-1].time}]
    page = service.client.get(f"{path}/events/list?limit=2").json()
    assert ([event["sequence"] for event in page["events"]], page["next_after"]) == ([1, 2], 2)
    steps = service.client.get(f"{path}/events/list?kind=step&after=2&limit=9").json()
    assert [event["kind"] for event in steps["events"]] == ["step"] * 3
    assert steps["next_after"] == len(supervisor.history), "what was passed over is not read again"
    supervisor.status = lambda: placed(FakeSupervisor.status(supervisor))  # type: ignore[method-assign]
    supervisor.train(1)
    (worker,) = eventually(
        lambda: service.client.get(f"{path}/placement").json()["workers"], "the worker"
    )
    assert (worker["node_id"], worker["group_id"], worker["rank"]) == ("n0", 0, 1)
    cluster = service.client.get("/api/v1/cluster").json()
    assert cluster["nodes"][0]["workers"] == [{"job_id": job_id, "group_id": 0, "rank": 1}]
    assert cluster["nodes"][0]["free_workers"] == 3
    assert cluster["pending"] == [{"resources": {"CPU": 2.0}, "count": 1}]


def test_logs_are_shown_followed_and_end_with_the_job(service: Service) -> None:
    job_id, supervisor = running_job(service)
    path = f"/api/v1/jobs/{job_id}/logs"
    assert code(service.client.get(path)) == (404, "log_not_found")
    logs = service.cluster.logs
    logs[LogSource(driver_id=job_id)] = ["one", "two"]
    logs[LogSource(supervisor_of=job_id)] = ["three"]
    answer = service.client.get(f"{path}?tail=1")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "two\nsupervisor: three\n"
    assert code(service.client.get(f"{path}?worker=0.9")) == (404, "worker_not_found")
    assert code(service.client.get(f"{path}?worker=../etc")) == (404, "worker_not_found")
    assert code(service.client.get(f"{path}?tail=99999")) == (422, "invalid_request")
    with service.client.stream("GET", f"{path}?follow=true") as stream:
        lines = stream.iter_lines()
        assert sorted(next(lines) for _ in range(3)) == ["one", "supervisor: three", "two"]
        logs[LogSource(driver_id=job_id)].append("four")
        assert next(lines) == "four"
        supervisor.finish()
        assert list(lines) == []


def test_readiness_needs_the_cluster_and_health_does_not(service: Service) -> None:
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    service.cluster.is_reachable = False
    answer = service.client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["database"] == "connected"
    assert service.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("service_database", ["sqlite"], indirect=True)
def test_a_second_service_on_the_same_file_is_refused(
    settings: Settings, service: Service, cluster: FakeCluster
) -> None:
    with pytest.raises(SpecificationError, match="another service uses this file"):
        build_app(settings, cluster)


@pytest.mark.parametrize("service_database", ["postgres"], indirect=True)
def test_two_services_on_one_postgres_store_and_show_every_event_once(
    settings: Settings, cluster: FakeCluster
) -> None:
    # The second one is cut off from Ray and knows of events from the database alone.
    cut_off = FakeCluster()
    cut_off.is_reachable = False
    with (
        run_service(settings, cluster) as one,
        run_service(settings, cluster) as two,
        run_service(settings, cut_off) as blind,
    ):
        job_id = one.submit()
        supervisor = cluster.start_supervisor(job_id)
        seen: dict[str, list[int]] = {}

        def watch(service: Service) -> None:
            with MicsClient(str(service.client.base_url)) as client:
                url = str(service.client.base_url)
                seen[url] = [event.sequence for event in client.watch(job_id)]

        watchers = [threading.Thread(target=watch, args=(s,)) for s in (one, two, blind)]
        for watcher in watchers:
            watcher.start()
        for _ in range(9):
            supervisor.train(1)
            two.wait_for(job_id, step=len(supervisor.steps))
        assert two.client.post(f"/api/v1/jobs/{job_id}/scale", json={"groups": 3}).is_success
        supervisor.finish()
        for watcher in watchers:
            watcher.join(20.0)
            assert not watcher.is_alive(), "a watcher was not told the end"
        expected = list(range(1, len(supervisor.history) + 1))
        assert [*seen.values()] == [expected] * 3
        # A job that is gone is closed by both, with one event.
        other = two.submit()
        cluster.set_driver(other, DriverState.FAILED, "OSError: disk full")
        assert one.wait_for(other, state="failed")["reason"] == "OSError: disk full"
        events = blind.client.get(f"/api/v1/jobs/{other}/events/list").json()["events"]
        assert [event["sequence"] for event in events] == [1]
        headers = {"Idempotency-Key": "shared"}
        answers = [
            s.client.post("/api/v1/jobs", json=specification(), headers=headers)
            for s in (one, two, blind)
        ]
        assert len({answer.json()["job_id"] for answer in answers}) == 1


@pytest.mark.parametrize("service_database", ["sqlite"], indirect=True)  # it has its own server
def test_a_database_that_is_gone_is_told_apart_from_a_cluster_that_is(
    settings: Settings, cluster: FakeCluster
) -> None:
    with contextlib.suppress(MissingServerError), run_postgres() as server:
        shared = settings.model_copy(update={"database_url": server.new_database()})
        with run_service(shared, cluster) as service:
            job_id = service.submit()
            server.stop()
            answer = service.client.get(f"/api/v1/jobs/{job_id}")
            assert code(answer) == (503, "database_unavailable")
            assert answer.headers["retry-after"]
            ready = service.client.get("/readyz")
            assert ready.status_code == 503
            assert (ready.json()["database"], ready.json()["ray"]) == (
                "It does not answer.",
                "connected",
            )
            assert service.client.get("/healthz").status_code == 200
        return
    pytest.skip("there is no Postgres server on this machine")
