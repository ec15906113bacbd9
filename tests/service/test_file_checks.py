"""A job's files are looked at without holding anybody else up, however long that takes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import specification
from running import DEADLINE_S, Service

from mics_core.spec import JobSpec, parse_job_spec
from service import file_checks
from service.errors import RequestError
from service.file_checks import FileChecks

SPEC = parse_job_spec(specification())


@pytest.fixture
def service_database() -> None:
    """No database of its own: what is asked here is no question of the store."""


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set to have storage answer."""
    answers = threading.Event()

    def check(_spec: JobSpec, *, by_service: bool) -> None:
        assert by_service
        assert answers.wait(DEADLINE_S)

    monkeypatch.setattr(file_checks, "check_files", check)
    yield answers
    answers.set()


def test_storage_without_an_answer_is_given_up_and_used_again(stuck: threading.Event) -> None:
    async def scenario() -> None:
        checks = FileChecks(within_s=0.2)
        for _ in range(5):
            with pytest.raises(RequestError, match=r"did not answer in 0\.2 s") as caught:
                await checks.check(SPEC)
            assert (caught.value.status, caught.value.code) == (503, "storage_unavailable")
        looking = [t for t in threading.enumerate() if t.name == "mics-blocking-call"]
        assert len(looking) == 2, "the others waited for room"
        stuck.set()
        for thread in looking:
            await asyncio.to_thread(thread.join)
        await checks.check(SPEC)

    asyncio.run(scenario())


def test_searches_in_circles_hold_nobody_up(service: Service, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).symlink_to(tmp_path)
    data = {"kind": "text", "paths": [f"{tmp_path}/**/missing.txt"]}
    body = specification(data=data)

    def validate() -> int:
        return service.client.post("/api/v1/jobs/validate", json=body).status_code

    with ThreadPoolExecutor(4) as users:
        validations = [users.submit(validate) for _ in range(4)]
        waits = []
        while not all(validation.done() for validation in validations):
            begun = time.monotonic()
            assert service.client.get("/api/v1/jobs").status_code == 200
            waits.append(time.monotonic() - begun)
    assert {validation.result() for validation in validations} == {422}
    assert max(waits) < 1.0
