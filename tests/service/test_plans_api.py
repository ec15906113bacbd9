"""Planning over REST: the choice with its reason, and refusals that say what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fakes import specification
from running import Service

from mics_core.errors import SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.cluster import ClusterSpec
from service.client import MicsClient

LAB = {
    "name": "lab",
    "nodes": 2,
    "workers_per_node": 2,
    "memory_gib": 4,
    "peak_tflops": 0.1,
    "intra_node": {"bandwidth_gbit_per_s": 8, "latency_us": 50},
    "inter_node": {"bandwidth_gbit_per_s": 1, "latency_us": 100},
}
OPEN: dict[str, Any] = {"partition_size": "auto", "groups": {}}


@pytest.fixture
def service_database() -> None:
    """No database of its own: what is asked here never comes so far."""


def ask(service: Service, **body: Any) -> httpx.Response:
    return service.client.post("/api/v1/plans", json=body)


def problem_of(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert "Traceback" not in answer.text
    return dict(error["problems"][0])


def test_a_plan_has_a_choice_with_its_reason_and_the_others(service: Service) -> None:
    answer = ask(service, job=specification(**OPEN), cluster=LAB)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["cluster"], plan["nodes"], plan["workers_per_node"]) == ("lab", 2, 2)
    choice = plan["choice"]
    assert plan["reason"] == choice["reason"]
    assert f"p = {choice['partition_size']}" in plan["reason"]
    assert plan["num_candidates"] == 1 + len(plan["candidates"])
    assert {layout["partition_size"] for layout in [choice, *plan["candidates"]]} == {1, 2, 4}
    for layout in plan["candidates"]:
        assert layout["reason"].endswith(".")
        parts = layout["memory_bytes"]
        assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])
        assert layout["times_s"]["total"] == pytest.approx(layout["step_s"])
    assert plan["refused"][0]["cause"] == "placement"


def test_a_cluster_may_be_named_and_sized(service: Service) -> None:
    answer = ask(service, job=specification(), cluster="p4d.24xlarge", nodes=3)
    assert answer.status_code == 200, answer.text
    assert answer.json()["nodes"] == 3
    named = specification(resources={"cluster": "p4de.24xlarge"})
    assert ask(service, job=named).json()["cluster"] == "p4de.24xlarge"


def test_the_body_may_be_yaml(service: Service) -> None:
    body = yaml.safe_dump({"job": specification(), "cluster": LAB})
    headers = {"content-type": "application/yaml"}
    answer = service.client.post("/api/v1/plans", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


def test_the_client_plans_and_gets_the_refusal_as_an_error(service: Service) -> None:
    with MicsClient(str(service.client.base_url)) as client:
        spec = parse_job_spec(specification(**OPEN))
        plan = client.plan(spec, ClusterSpec.model_validate(LAB), nodes=1)
        assert plan.nodes == 1
        with pytest.raises(SpecificationError, match="neither a known cluster"):
            client.plan(spec, "nowhere")


@pytest.mark.parametrize(
    ("body", "field", "rule", "remedy"),
    [
        ({"cluster": LAB}, "(body)", "mapping of `job` and `cluster`", "under `job`"),
        ({"job": specification(), "clutser": 1}, "clutser", "no such field", "cluster"),
        ({"job": specification()}, "cluster", "speed of the cluster's links", "mics probe"),
        ({"job": specification(), "cluster": "p4d"}, "cluster", "neither a known", "p4d.24xlarge"),
        ({"job": specification(), "cluster": "/etc/x.yaml"}, "cluster", "not read", "`cluster`"),
        ({"job": specification(), "cluster": LAB | {"nodes": 0}}, "nodes", "greater than", "above"),
        ({"job": specification(), "cluster": LAB | {"node": 1}}, "node", "no such", "`nodes`"),
        ({"job": specification(), "cluster": 7}, "(cluster)", "mapping", "mics probe"),
        ({"job": specification(), "cluster": LAB, "nodes": 0}, "nodes", "positive", "leave"),
        ({"job": specification(), "cluster": LAB, "nodes": 10**9}, "nodes", "at most", "fewer"),
        ({"job": specification(name=3), "cluster": LAB}, "name", "string", "quotes"),
        ({"job": specification(partition_size=3), "cluster": LAB}, "training.global_batch_size",
         "multiple of", "Choose"),
        ({"job": specification(partition_size=8, groups={}), "cluster": LAB}, "partition_size",
         "whole nodes of equal size", "Choose 4"),
        ({"job": specification(model={"callable": "a.b:c"}), "cluster": LAB}, "model",
         "once it is built", "mics plan"),
        ({"job": specification(), "cluster": LAB | {"memory_gib": 1e-6}}, "partition_size",
         "comes closest", "Give each worker at least"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_with_the_remedy(
    service: Service, body: dict[str, Any], field: str, rule: str, remedy: str
) -> None:
    problem = problem_of(ask(service, **body))
    assert problem["field"] == field
    assert rule in problem["rule"]
    assert remedy in problem["remedy"]


def test_the_api_documents_the_request(service: Service) -> None:
    schema = service.client.get("/openapi.json").json()
    content = schema["paths"]["/api/v1/plans"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/yaml"}
    assert {"PlanRequest", "PlanAnswer", "ClusterSpec", "LinkSpec"} <= set(
        schema["components"]["schemas"]
    )


def test_no_file_is_opened_for_a_plan(service: Service, tmp_path: Path) -> None:
    # Whoever opens this waits for somebody who writes into it.
    pipe = tmp_path / "tokenizer.json"
    os.mkfifo(pipe)
    job = specification(tokenizer={"kind": "file", "path": str(pipe)}, **OPEN)
    problem = problem_of(ask(service, job=job, cluster=LAB))
    assert problem["field"] == "tokenizer.path"
    assert "not read for a plan" in problem["rule"]
    assert "model.vocab_size" in problem["remedy"]
    job["model"] = {**job["model"], "vocab_size": 500}
    answer = ask(service, job=job, cluster=LAB)
    assert answer.status_code == 200, answer.text
