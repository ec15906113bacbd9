"""Submitting jobs and looking at them, through HTTP."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import specification
from running import DEADLINE_S, Service, eventually

from mics_core.errors import ClusterError
from mics_core.spec import JobSpec


def test_a_submitted_job_is_pending_and_was_handed_to_the_cluster(service: Service) -> None:
    answer = service.client.post("/api/v1/jobs", json=specification())
    job = answer.json()
    assert answer.status_code == 201
    assert job["job_id"].startswith("tiny-gpt-2-")
    assert answer.headers["location"] == f"/api/v1/jobs/{job['job_id']}"
    assert (job["state"], job["source"], job["status"]) == ("pending", "rest", None)
    assert (job["wanted_groups"], job["maximum_groups"], job["steps"]) == (2, 4, 10)
    submitted = service.cluster.submitted
    eventually(lambda: job["job_id"] in submitted, "the hand-over to the cluster")
    assert submitted[job["job_id"]] == JobSpec.model_validate(job["spec"])


def test_yaml_is_as_good_as_json(service: Service) -> None:
    text = yaml.safe_dump(specification())
    headers = {"content-type": "application/yaml; charset=utf-8"}
    answer = service.client.post("/api/v1/jobs", content=text, headers=headers)
    assert answer.status_code == 201, answer.text


def test_validate_fills_in_the_defaults_and_starts_nothing(service: Service) -> None:
    answer = service.client.post("/api/v1/jobs/validate", json=specification())
    assert answer.status_code == 200
    assert answer.json()["training"]["optimizer"]["kind"] == "adamw"
    assert service.client.get("/api/v1/jobs").json() == {"jobs": [], "next_cursor": None}
    assert service.cluster.submitted == {}


def test_a_broken_rule_is_named_with_field_value_and_remedy(service: Service) -> None:
    wrong = specification(partition_size=3, wobble=1)
    for path in ("/api/v1/jobs", "/api/v1/jobs/validate"):
        answer = service.client.post(path, json=wrong)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "invalid_specification")
        assert {problem["field"] for problem in error["problems"]} >= {"wobble"}
        assert all(problem["rule"] and problem["remedy"] for problem in error["problems"])
    assert service.client.get("/api/v1/jobs").json() == {"jobs": [], "next_cursor": None}


def test_a_missing_file_is_named_before_anything_starts(service: Service, tmp_path: Path) -> None:
    missing = str(tmp_path / "*.txt")
    data = {"kind": "text", "paths": [missing]}
    answer = service.client.post("/api/v1/jobs", json=specification(data=data))
    assert answer.status_code == 422
    assert answer.json()["error"]["problems"][0]["field"] == "data.paths.0"
    assert missing in answer.json()["error"]["problems"][0]["value"]


def test_a_submission_is_answered_before_the_cluster_has_it(service: Service) -> None:
    cluster, take, may_go_on = service.cluster, service.cluster.submit, threading.Event()

    async def slow_submit(*asked: Any) -> None:
        await asyncio.to_thread(may_go_on.wait, DEADLINE_S)
        await take(*asked)

    cluster.submit = slow_submit  # type: ignore[method-assign]
    answer = service.client.post("/api/v1/jobs", json=specification())
    job_id = answer.json()["job_id"]
    assert answer.status_code == 201
    assert job_id not in cluster.submitted
    assert service.job(job_id)["state"] == "pending"
    may_go_on.set()
    eventually(lambda: job_id in cluster.submitted, "the hand-over to the cluster")


def test_a_job_that_the_cluster_did_not_take_is_handed_over_again(service: Service) -> None:
    cluster, take = service.cluster, service.cluster.submit
    refusals = iter([True, True])

    async def submit(*asked: Any) -> None:
        if next(refusals, False):
            raise ClusterError("The Jobs API does not answer.", remedy="Wait.")
        await take(*asked)

    cluster.submit = submit  # type: ignore[method-assign]
    job_id = service.submit()
    assert next(refusals, None) is None, "it was refused twice before"
    cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")


def test_a_layout_that_the_cluster_cannot_hold_is_refused_before_anything_starts(
    service: Service,
) -> None:
    impossible = specification(
        partition_size=3,
        training={**specification()["training"], "global_batch_size": 24},
    )
    for path in ("/api/v1/jobs", "/api/v1/jobs/validate"):
        answer = service.client.post(path, json=impossible)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["code"] == "impossible_layout"
        assert error["problems"][0]["field"] == "partition_size"
        assert error["problems"][0]["remedy"]
    assert not service.cluster.submitted
    assert service.client.get("/api/v1/jobs").json()["jobs"] == []


def test_an_unreachable_cluster_leaves_nothing_half_done(service: Service) -> None:
    service.cluster.is_reachable = False
    answer = service.client.post("/api/v1/jobs", json=specification())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cluster_unavailable")
    assert answer.json()["error"]["remedy"]
    assert answer.headers["retry-after"]
    assert service.client.get("/api/v1/jobs").json() == {"jobs": [], "next_cursor": None}
    assert service.client.get("/healthz").json()["status"] == "degraded"


def test_the_list_is_newest_first_and_filters_by_state(service: Service) -> None:
    first, second = service.submit(), service.submit()
    service.cluster.start_supervisor(first).train(3)
    service.wait_for(first, state="running", step=3)

    def ids(query: str) -> list[str]:
        return [job["job_id"] for job in service.client.get(f"/api/v1/jobs{query}").json()["jobs"]]

    assert ids("") == [second, first]
    assert ids("?limit=1") == [second]
    assert ids("?state=running") == [first]
    assert ids("?state=running&state=pending") == [second, first]
    assert ids("?state=failed") == []


def test_the_detail_shows_what_the_supervisor_says(service: Service) -> None:
    job_id = service.submit()
    supervisor = service.cluster.start_supervisor(job_id)
    supervisor.train(4, loss=1.5)
    supervisor.lose_group(1, "Node 7 is gone.")
    job = service.wait_for(job_id, generation=2, step=4, tokens_per_s=2048.0)
    assert (job["loss"], job["tokens_per_s"], job["num_groups"]) == (1.5, 2048.0, 1)
    assert job["status"]["generations"][1]["reason"] == "Node 7 is gone."


def test_a_diverged_loss_is_told_and_not_hidden(service: Service) -> None:
    job_id = service.submit()
    service.cluster.start_supervisor(job_id).train(1, loss=float("nan"))
    service.wait_for(job_id, step=1)
    records = service.client.get(f"/api/v1/jobs/{job_id}/throughput").json()["records"]
    assert records[0]["loss"] == "NaN"


@pytest.mark.parametrize("path", ["", "/events", "/throughput"])
def test_an_unknown_job_is_not_found(service: Service, path: str) -> None:
    answer = service.client.get(f"/api/v1/jobs/nobody{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    assert "nobody" in answer.json()["error"]["message"]


def test_health_names_version_and_connection(service: Service) -> None:
    body = service.client.get("/healthz").json()
    assert (body["status"], body["ray"]) == ("ok", "connected")
    assert body["version"]


def test_the_schema_documents_both_formats_and_every_route(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()
    body = schema["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]
    assert body.keys() == {"application/json", "application/yaml"}
    example = body["application/json"]["example"]
    assert JobSpec.model_validate(example) == JobSpec.model_validate(
        yaml.safe_load(body["application/yaml"]["example"])
    )
    for path in schema["paths"].values():
        for route in path.values():
            assert route["summary"]
            assert route["tags"]
