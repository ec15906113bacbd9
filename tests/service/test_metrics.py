"""What `/metrics` says, and that its series stay bounded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import FakeCluster
from prometheus_client.parser import text_string_to_metric_families
from running import Service, eventually, run_service

from mics_core.spec.status import CheckpointEvent, RegroupEvent, RegroupPhases
from service.metrics.follow import LOSS_CAUSES, loss_cause
from service.settings import Settings

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: Service) -> Samples:
    answer = service.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, key: str, /, **labels: str) -> float:
    wanted = frozenset(labels.items())
    found = [each for (name, own), each in samples.items() if name == key and wanted <= own]
    assert len(found) == 1, f"{key} {labels}: {found}"
    return found[0]


def test_a_live_job_is_told_and_an_ended_one_forgotten(service: Service) -> None:
    supervisor = service.cluster.start_supervisor("live", name="My job")
    supervisor.train(4, loss=2.5)
    service.wait_for("live", step=4)
    # The status may be known a moment before the events are.
    eventually(
        lambda: any(name == "mics_job_samples_per_second" for name, _ in scrape(service)),
        "the figures of the steps",
    )
    found = scrape(service)
    job = {"job_id": "live", "name": "My job"}
    assert value(found, "mics_job_step", **job) == 4
    assert value(found, "mics_job_loss", **job) == 2.5
    assert value(found, "mics_job_tokens_per_second", **job) == 2048
    assert value(found, "mics_job_samples_per_second", **job) == 16
    assert value(found, "mics_job_state", **job, state="running") == 1
    assert value(found, "mics_job_state", **job, state="pending") == 0
    assert value(found, "mics_job_groups", **job, state="member") == 2
    assert value(found, "mics_job_minimum_groups", **job) == 1
    assert value(found, "mics_jobs", state="running") == 1
    assert value(found, "mics_job_checkpoints_total", job_id="live", result="failed") == 0
    assert 0 < value(found, "mics_job_goodput_ratio", **job) <= 1
    assert value(found, "mics_job_group_sample_seconds", **job, group_id="1") == 0.09
    assert value(found, "mics_job_group_slowness_ratio", **job, group_id="1") == 1.8
    phases = RegroupPhases(detect_s=None, agree_s=0.3, connect_s=0.2, copy_s=None, redo_s=None)
    supervisor._tell(RegroupEvent, generation=2, reason="A join.", step=4, phases=phases)
    supervisor._tell(CheckpointEvent, step=4, path="/there", error="No space is left.")
    supervisor.finish()
    service.wait_for("live", state="finished")
    last = scrape(service)
    assert value(last, "mics_jobs", state="finished") == 1
    assert value(last, "mics_job_regroup_seconds_sum", job_id="live", phase="agree") == 0.3
    assert value(last, "mics_job_regroup_seconds_count", job_id="live", phase="copy") == 0
    assert value(last, "mics_job_checkpoints_total", job_id="live", result="failed") == 1
    assert not [name for name, labels in scrape(service) if ("job_id", "live") in labels]


def test_requests_are_counted_by_route_and_not_by_what_clients_make_up(service: Service) -> None:
    for number in range(5):
        service.client.get(f"/api/v1/jobs/none-{number}")
        service.client.get(f"/made/up/{number}")
        service.client.request(f"MADE{number}", "/api/v1/jobs")
        service.client.get("/api/v1/jobs", headers={"host": f"evil{number}.example"})
    found = scrape(service)
    route = "/api/v1/jobs/{job_id}"
    assert value(found, "mics_http_requests_total", route=route, method="GET", status="404") == 5
    assert value(found, "mics_http_requests_total", route="other", status="404") == 5
    assert value(found, "mics_http_requests_total", route="other", status="400") == 5
    methods = {dict(labels).get("method") for _name, labels in found} - {None}
    assert methods == {"GET", "other"}


def test_watchers_and_events_are_counted(service: Service) -> None:
    supervisor = service.cluster.start_supervisor("watched")
    supervisor.train(3)
    service.wait_for("watched", step=3)
    with service.client.stream("GET", "/api/v1/jobs/watched/events") as answer:
        lines = answer.iter_lines()
        assert next(lines)
        found = scrape(service)
        assert value(found, "mics_watchers") == 1
        assert value(found, "mics_events_stored_total", kind="step") == 3
        assert value(found, "mics_follower_lag_seconds_count") >= 1
    eventually(lambda: value(scrape(service), "mics_watchers") == 0, "the watcher's departure")


def test_two_applications_in_one_process_have_metrics_of_their_own(
    service: Service, tmp_path: Path
) -> None:
    service.client.get("/api/v1/jobs")
    other = Settings(data_directory=tmp_path / "other")
    with run_service(other, FakeCluster()) as second:
        assert not [name for name, labels in scrape(second) if ("route", "/api/v1/jobs") in labels]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("The process of rank 1 on node-a is gone: its connection closed.", "connection"),
        ("It has not answered for 12 s since generation 3 broke.", "silent"),
        ("It does not come to the next generation: group 0 has waited for it for 16 s.", "silent"),
        ("No group has said anything for 41 s.", "silent"),
        ("It has not become ready within 600 s of its workers' start.", "silent"),
        ("Rank 2 failed at step 7: CUDA is out of memory.", "own_error"),
        ("Rank 2 lost a worker of its group at step 7: rank 0 is missing.", "peer"),
        ("Its run failed: RuntimeError", "run"),
        ("A meteor.", "other"),
    ],
)
def test_lost_groups_are_classed_by_their_reason(reason: str, cause: str) -> None:
    assert loss_cause(reason) == cause
    assert cause in LOSS_CAUSES


def test_every_metric_is_in_the_table_of_operations(service: Service) -> None:
    service.cluster.start_supervisor("live").train(2)
    service.wait_for("live", step=2)
    answer = service.client.get("/metrics")
    names = set(re.findall(r"^# TYPE (mics_\w+)", answer.text, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    root = Path(__file__).resolve().parent.parent.parent
    text = (root / "docs" / "operations.md").read_text(encoding="utf-8")
    assert {name for name in names if f"`{name}`" not in text} == set()
    documented = set(re.findall(r"^\| `(mics_\w+)` \|", text, re.MULTILINE))
    assert documented - names == set()
