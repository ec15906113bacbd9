"""The client against a real HTTP server: answers, refusals, cut streams."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scripted_api import ScriptedApi, serving
from scripted_job import ScriptedJob, example_spec

from mics_core.errors import (
    JobConflictError,
    JobNotFoundError,
    MicsError,
    ScaleError,
    SpecificationError,
)
from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState
from service.client import MicsClient, ServiceError, ServiceUnreachableError


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedApi]:
    with serving(ScriptedApi()) as api:
        yield api


@pytest.fixture
def client(api: ScriptedApi) -> Iterator[MicsClient]:
    with MicsClient(api.url, timeout_s=5, retry_s=0.01, max_retries=3) as client:
        yield client


def trained_job(api: ScriptedApi, job_id: str, *, steps: int = 10) -> ScriptedJob:
    job = api.add(ScriptedJob(job_id, parse_job_spec(example_spec(steps=steps))))
    job.join(0, 1)
    job.set_state(JobState.RUNNING, "Two groups train.")
    for _ in range(steps):
        job.commit_step()
    return job


def refusing_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_submitted_job_comes_back_with_its_specification(client: MicsClient) -> None:
    spec = parse_job_spec(example_spec(name="fresh"))
    detail = client.submit(spec)
    assert detail.spec == spec
    assert client.validate(spec) == spec
    assert client.job(detail.job_id).name == "fresh"
    assert detail.job_id in [job.job_id for job in client.jobs().jobs]


def test_a_broken_rule_names_its_field_value_and_remedy(client: MicsClient) -> None:
    spec = parse_job_spec(example_spec())
    training = spec.training.model_copy(update={"global_batch_size": 255})
    with pytest.raises(SpecificationError) as caught:
        client.submit(spec.model_copy(update={"training": training}))
    (problem,) = caught.value.problems
    assert problem.field == "training.global_batch_size"
    assert problem.remedy


def test_a_refusal_is_the_error_that_the_service_raised(
    api: ScriptedApi, client: MicsClient
) -> None:
    job = trained_job(api, "bounded")
    with pytest.raises(ScaleError) as caught:
        client.scale("bounded", 9)
    assert (caught.value.code, caught.value.field) == ("scale_out_of_bounds", "groups")
    assert "from 1 to 4" in caught.value.message
    assert caught.value.remedy
    job.cancel()
    with pytest.raises(JobConflictError):
        client.cancel("bounded")
    with pytest.raises(JobNotFoundError):
        client.job("nobody")


def test_an_unknown_code_is_kept_as_it_is(
    api: ScriptedApi, client: MicsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_job(api, "odd")
    monkeypatch.setattr(ScaleError, "code", "of_a_newer_service")
    body_error = ScaleError("Something new.", remedy="Do this.")
    monkeypatch.setattr(api.jobs["odd"], "scale", lambda _groups: raise_(body_error))
    monkeypatch.setattr("service.transport._kinds_by_code", dict)
    with pytest.raises(ServiceError) as caught:
        client.scale("odd", 2)
    assert (caught.value.code, caught.value.remedy) == ("of_a_newer_service", "Do this.")


def raise_(error: MicsError) -> None:
    raise error


def test_an_answer_of_another_server_is_named(api: ScriptedApi) -> None:
    with (
        MicsClient(api.url + "/static") as client,
        pytest.raises(ServiceError, match="status 404") as caught,
    ):
        client.jobs()
    assert "address" in (caught.value.remedy or "")


def test_an_absent_service_is_named_with_its_address() -> None:
    url = refusing_url()
    with MicsClient(url) as client, pytest.raises(ServiceUnreachableError) as caught:
        client.jobs()
    assert url in caught.value.message
    assert "mics serve" in (caught.value.remedy or "")


def test_events_end_with_the_final_state(api: ScriptedApi, client: MicsClient) -> None:
    job = trained_job(api, "whole")
    job.set_state(JobState.FINISHED, "All steps are done.")
    assert list(client.watch("whole")) == job.events
    assert list(client.watch("whole", after=5)) == job.events[5:]


def test_a_cut_stream_goes_on_where_it_ended(api: ScriptedApi, client: MicsClient) -> None:
    job = trained_job(api, "cut", steps=20)
    job.set_state(JobState.FINISHED, "All steps are done.")
    api.cut_after = 7
    api.stream_starts.clear()
    assert list(client.watch("cut")) == job.events
    assert api.stream_starts == [0, 7]


def test_events_that_are_all_known_end_at_once(api: ScriptedApi, client: MicsClient) -> None:
    job = trained_job(api, "known")
    job.set_state(JobState.FAILED, "Group 0 failed.")
    assert list(client.watch("known", after=len(job.events))) == []


def test_a_stream_is_given_up_when_the_service_stays_away() -> None:
    with (
        MicsClient(refusing_url(), retry_s=0.01, max_retries=2) as client,
        pytest.raises(ServiceUnreachableError),
    ):
        next(client.watch("any"))


def test_events_of_an_unknown_job_are_refused(client: MicsClient) -> None:
    with pytest.raises(JobNotFoundError):
        next(client.watch("nobody"))


def test_wait_returns_the_ended_job_or_says_where_it_stands(
    api: ScriptedApi, client: MicsClient
) -> None:
    job = trained_job(api, "waited", steps=5)
    with pytest.raises(TimeoutError, match="running at step 5 of 5"):
        client.wait("waited", timeout_s=0.05, interval_s=0.02)
    job.set_state(JobState.FINISHED, "All steps are done.")
    assert client.wait("waited", timeout_s=5).state is JobState.FINISHED


@pytest.mark.parametrize(("num_cut", "comes_back"), [(2, True), (1000, False)])
def test_wait_outlasts_a_service_that_is_started_again_but_not_one_that_stays_away(
    api: ScriptedApi,
    client: MicsClient,
    monkeypatch: pytest.MonkeyPatch,
    num_cut: int,
    comes_back: bool,
) -> None:
    job = trained_job(api, f"waited-{num_cut}", steps=5)
    answers = iter([JobState.RUNNING, JobState.FINISHED])

    def find(_: str) -> ScriptedJob:
        job.set_state(state := next(answers), "It is so.")
        if state is JobState.RUNNING:
            api.cut_details = num_cut  # of the answers after this one
        return job

    monkeypatch.setattr(api, "find", find)
    if comes_back:
        ended = client.wait(job.job_id, timeout_s=20, interval_s=0.02)
        assert (ended.state, api.cut_details) == (JobState.FINISHED, 0)
    else:
        with pytest.raises(ServiceUnreachableError):
            client.wait(job.job_id, timeout_s=20, interval_s=0.02)
        assert num_cut - api.cut_details == 4, "once, and max_retries more"
        api.cut_details = 0
