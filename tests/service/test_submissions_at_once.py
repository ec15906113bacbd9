"""Submissions that come again, or at the same moment: keys and limits hold all the same."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fakes import FakeCluster, specification
from running import DEADLINE_S, Service, eventually, run_service

from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.settings import Settings
from service.store import Store


def gather_at_the_layout(cluster: FakeCluster, number: int) -> None:
    """Have so many submissions wait for each other where the cluster is asked for their layout."""
    num_here = 0

    async def check_layout(_spec: object) -> None:
        nonlocal num_here
        num_here += 1
        async with asyncio.timeout(DEADLINE_S):
            while num_here < number:
                await asyncio.sleep(0.005)

    cluster.check_layout = check_layout  # type: ignore[method-assign,assignment]


def post_at_once(service: Service, number: int, **headers: str) -> list[httpx.Response]:
    gather_at_the_layout(service.cluster, number)

    def post(_: int) -> httpx.Response:
        return service.client.post("/api/v1/jobs", json=specification(), headers=headers)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(post, range(number)))


def test_submissions_at_the_same_moment_do_not_go_beyond_the_limit(
    settings: Settings, cluster: FakeCluster
) -> None:
    with run_service(settings.model_copy(update={"open_jobs_per_owner": 3}), cluster) as service:
        answers = post_at_once(service, 10)
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [201] * 3 + [429] * 7
        refused = next(answer for answer in answers if answer.is_error)
        assert refused.json()["error"]["code"] == "too_many_jobs"
        assert len(service.client.get("/api/v1/jobs").json()["jobs"]) == 3


def test_a_key_that_comes_several_times_at_once_starts_one_job(
    settings: Settings, cluster: FakeCluster
) -> None:
    # Those that come too late for the one job that there is room for are answered with it.
    with run_service(settings.model_copy(update={"open_jobs_per_owner": 1}), cluster) as service:
        answers = post_at_once(service, 8, **{"Idempotency-Key": "one"})
        assert {answer.status_code for answer in answers} == {201}
        (job_id,) = {answer.json()["job_id"] for answer in answers}
        eventually(lambda: job_id in cluster.drivers, "its driver")
        assert list(cluster.submitted) == [job_id]
        assert len(service.client.get("/api/v1/jobs").json()["jobs"]) == 1


def test_a_key_belongs_to_its_owner(settings: Settings, cluster: FakeCluster) -> None:
    store = Store(settings.database)
    tokens = TokenStore(store.database)
    secrets = [
        tokens.create("ulla", Role.USER),
        tokens.create("ugo", Role.USER),
        tokens.create("ugo-laptop", Role.USER, owner="ugo"),
    ]
    store.close()
    with run_service(settings, cluster) as service:

        def submit(secret: str, **changes: Any) -> httpx.Response:
            headers = {"authorization": f"Bearer {secret}", "Idempotency-Key": "shared"}
            return service.client.post(
                "/api/v1/jobs", json=specification(**changes), headers=headers
            )

        ulla, ugo, laptop = (submit(secret) for secret in secrets)
        assert ulla.json()["job_id"] != ugo.json()["job_id"]
        assert laptop.json()["job_id"] == ugo.json()["job_id"]
        # What one owner's key has started says nothing to another.
        refused = submit(secrets[0], name="Another")
        assert refused.status_code == 422
        assert ulla.json()["job_id"] in refused.text
        assert ugo.json()["job_id"] not in refused.text


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {}},
        {"groups": {"minimum": 1, "wanted": 2, "maximum": 4, "silence_s": 15.0}},
        {"checkpoint": {}},
        {"checkpoint": {"directory": None}, "engine": {}},
    ],
)
def test_a_default_that_is_written_out_is_the_same_specification(
    service: Service, changes: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "one"}
    first = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
    written = specification(**changes)
    again = service.client.post("/api/v1/jobs", json=written, headers=headers)
    assert again.status_code == 201, again.text
    assert again.json()["job_id"] == first.json()["job_id"]


def test_a_specification_as_the_service_gives_it_back_is_the_same(service: Service) -> None:
    headers = {"Idempotency-Key": "one"}
    first = service.client.post("/api/v1/jobs", json=specification(), headers=headers).json()
    again = service.client.post("/api/v1/jobs", json=first["spec"], headers=headers)
    assert again.status_code == 201, again.text
    assert again.json()["job_id"] == first["job_id"]
