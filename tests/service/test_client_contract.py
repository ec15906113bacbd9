"""The client and the whole contract of the API, over a real connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from scripted_api import serving
from scripted_contract import ContractApi
from scripted_job import ScriptedJob, example_spec

from mics_core.errors import JobConflictError, JobNotFoundError, SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import CheckpointEvent, GroupState, JobState
from service.client import MicsClient, TokenError


@pytest.fixture(scope="module")
def api() -> Iterator[ContractApi]:
    with serving(ContractApi()) as api:
        assert isinstance(api, ContractApi)
        yield api


@pytest.fixture
def client(api: ContractApi) -> Iterator[MicsClient]:
    with MicsClient(api.url, timeout_s=5, retry_s=0.01, max_retries=3) as client:
        yield client


def trained_job(api: ContractApi, job_id: str, *, steps: int = 10) -> ScriptedJob:
    job = ScriptedJob(job_id, parse_job_spec(example_spec(name=job_id, steps=steps)))
    api.add(job)
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(steps):
        job.commit_step()
    return job


def test_the_same_key_gives_the_same_job(client: MicsClient) -> None:
    first = client.submit(example_spec(name="keyed"), idempotency_key="mine")
    assert client.submit(example_spec(name="keyed"), idempotency_key="mine") == first
    assert client.submit(example_spec(name="keyed")).job_id != first.job_id


def test_a_job_is_submitted_from_a_file_with_paths_beside_it(
    client: MicsClient, tmp_path: Path
) -> None:
    spec = example_spec(name="from-file")
    spec["data"]["paths"] = ["corpus.txt"]
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    sent = client.submit(file).spec
    assert sent.data.model_dump()["paths"] == [str(tmp_path / "corpus.txt")]
    with pytest.raises(SpecificationError, match="partition_size"):
        client.submit(spec | {"partition_size": 0})


def test_all_pages_of_the_list_are_read_once(api: ContractApi, client: MicsClient) -> None:
    while len(api.jobs) < 5:
        trained_job(api, f"page-{len(api.jobs)}", steps=1)
    page = client.jobs()
    assert (len(page.jobs), page.next_cursor) == (2, "2")
    found = [job.job_id for job in client.all_jobs()]
    assert sorted(found) == sorted(api.jobs)
    trained_job(api, "ended", steps=1).set_state(JobState.FINISHED, "All steps are done.")
    assert [job.job_id for job in client.jobs(states=[JobState.FINISHED]).jobs] == ["ended"]
    client.jobs(owner="me", labels={"team": "search", "tier": "1"})
    assert api.calls[-1][2] == {"owner": "me", "label": ["team:search", "tier:1"]}


def test_a_job_is_paused_resumed_and_deleted(api: ContractApi, client: MicsClient) -> None:
    job = trained_job(api, "steered")
    assert client.pause("steered").state is JobState.PAUSED
    with pytest.raises(JobConflictError, match="is paused"):
        client.pause("steered")
    assert client.resume("steered").state is JobState.PENDING
    with pytest.raises(JobConflictError, match="has not ended"):
        client.delete("steered")
    job.cancel()
    client.delete("steered")
    with pytest.raises(JobNotFoundError):
        client.job("steered")


def test_bounds_are_sent_alone_or_with_a_number(api: ContractApi, client: MicsClient) -> None:
    trained_job(api, "bounds")
    client.scale("bounds", 3)
    client.scale("bounds", minimum=1, maximum=4)
    client.scale("bounds", 2, maximum=3)
    bodies = [body for _, path, body in api.calls if path.endswith("/bounds/scale")]
    assert bodies == ['{"groups":3}', '{"minimum":1,"maximum":4}', '{"groups":2,"maximum":3}']


def test_the_events_that_are_there_come_in_pages(api: ContractApi, client: MicsClient) -> None:
    job = trained_job(api, "paged", steps=20)
    first = client.events("paged", limit=7)
    assert first.events == job.events[:7]
    assert client.events("paged", after=first.next_after).events == job.events[7:]
    states = client.events("paged", kinds=["state", "generation"]).events
    assert {event.kind for event in states} == {"state", "generation"}


def test_a_log_comes_line_by_line_and_is_followed(api: ContractApi, client: MicsClient) -> None:
    trained_job(api, "logged")
    assert list(client.logs("logged", tail=2)) == ["driver: line 3", "driver: line 4"]
    assert list(client.logs("logged", tail=1, worker="0.1")) == ["worker 0.1: line 4"]
    lines = client.logs("logged", tail=1, follow=True)
    assert next(lines) == "driver: line 4"
    api.late_line.set()
    assert list(lines) == ["driver: the end"]
    with pytest.raises(JobNotFoundError):
        next(client.logs("nobody"))


def test_throughput_is_thinned_and_cut_to_steps(api: ContractApi, client: MicsClient) -> None:
    trained_job(api, "rates", steps=20)
    whole = client.throughput("rates")
    assert [record.step for record in whole.records] == list(range(20))
    assert (whole.goodput, whole.steps_per_point) == (0.97, 1)
    assert (whole.records[0].communication_share, whole.records[0].mfu) == (0.25, None)
    thin = client.throughput("rates", points=2, first_step=10)
    assert [record.step for record in thin.records] == [14, 19]


def test_checkpoints_placement_and_cluster_are_read(api: ContractApi, client: MicsClient) -> None:
    job = trained_job(api, "placed")
    job.events.append(
        CheckpointEvent(sequence=99, time=7.0, step=10, path="/runs/step-00000010", error="")
    )
    (checkpoint,) = client.checkpoints("placed").checkpoints
    assert (checkpoint.step, checkpoint.path, checkpoint.time) == (10, "/runs/step-00000010", 7.0)
    placement = client.placement("placed")
    assert [(worker.group_id, worker.rank) for worker in placement.workers] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert {worker.group_state for worker in placement.workers} == {GroupState.MEMBER}
    cluster = client.cluster()
    assert (cluster.nodes[0].workers[0].job_id, cluster.nodes[0].free_workers) == ("placed", 1)
    assert (cluster.pending[0].resources, cluster.pending[0].count) == ({"CPU": 2.0}, 3)


def test_a_token_is_an_argument_or_of_the_environment(
    api: ContractApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "token", "secret-1")
    monkeypatch.delenv("MICS_TOKEN", raising=False)
    with MicsClient(api.url) as client, pytest.raises(TokenError) as caught:
        client.jobs()
    assert caught.value.code == "token_required"
    assert "MICS_TOKEN" in (caught.value.remedy or "")
    with MicsClient(api.url) as client, pytest.raises(TokenError):
        next(client.watch("any"))
    with MicsClient(api.url, token="secret-1") as client:
        client.jobs()
    monkeypatch.setenv("MICS_TOKEN", "secret-1")
    monkeypatch.setenv("MICS_URL", api.url)
    with MicsClient() as client:
        assert client.url == api.url
        client.jobs()
