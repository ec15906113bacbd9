"""Logs take a seat before they are opened, end when they must, and leave nothing open."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fakes import FakeCluster
from running import Service, eventually, run_service
from sqlalchemy.exc import OperationalError

from mics_core.errors import ClusterError
from mics_core.spec.nodes import LogSource
from service.settings import Settings
from service.store import Store

DRIVER, SUPERVISOR = LogSource(driver_id="told"), LogSource(supervisor_of="told")
PATH = "/api/v1/jobs/told/logs"
FOLLOWED = f"{PATH}?follow=true"


class CountingCluster(FakeCluster):
    """Knows how many logs were opened, and how many are open; one may fail to open."""

    def __init__(self) -> None:
        super().__init__()
        self.num_opened = 0
        self.num_open = 0
        self.broken: LogSource | None = None

    async def open_logs(
        self, source: LogSource, tail: int, *, follow: bool
    ) -> list[AsyncGenerator[str]]:
        if source == self.broken:
            raise ClusterError("The dashboard does not answer.", remedy="Try again.")
        files = [
            self._counted(lines) for lines in await super().open_logs(source, tail, follow=follow)
        ]
        for lines in files:
            await anext(lines)  # open from here on, as Ray's are
        return files

    async def _counted(self, lines: AsyncGenerator[str]) -> AsyncGenerator[str]:
        self.num_opened += 1
        self.num_open += 1
        try:
            yield "open"
            async for line in lines:
                yield line
        finally:
            self.num_open -= 1


@pytest.fixture
def counting() -> CountingCluster:
    return CountingCluster()


@pytest.fixture
def told(tmp_path: Path, counting: CountingCluster) -> Iterator[Service]:
    """A service with one live job, `told`, of which two streams may be open."""
    settings = Settings(
        data_directory=tmp_path,
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
        poll_pause_s=0.01,
        watchers_per_job=2,
    )
    with run_service(settings, counting) as service:
        counting.start_supervisor("told").train(1)
        service.wait_for("told", step=1)
        counting.logs[DRIVER], counting.logs[SUPERVISOR] = ["one"], ["two"]
        yield service


def nothing_is_open(service: Service, cluster: CountingCluster) -> bool:
    return cluster.num_open == 0 and service.app.state.services.hub.num_seats == 0


def test_a_followed_log_ends_when_the_end_of_the_job_cannot_be_waited_for(
    told: Service, counting: CountingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> int:
        raise OperationalError("SELECT 1", {}, Exception("the database is gone"))

    monkeypatch.setattr(Store, "last_sequence", fail)
    answer = told.client.get(FOLLOWED)
    assert answer.status_code == 200
    assert set(answer.text.splitlines()) <= {"one", "supervisor: two"}
    eventually(lambda: nothing_is_open(told, counting), "the end of all that was opened")


@pytest.mark.parametrize("path", [PATH, FOLLOWED])
def test_a_log_that_cannot_be_opened_whole_leaves_nothing_open(
    told: Service, counting: CountingCluster, path: str
) -> None:
    counting.broken = SUPERVISOR
    answer = told.client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "cluster_unavailable")
    assert (counting.num_opened, counting.num_open) == (1, 0)
    assert nothing_is_open(told, counting)


def test_without_a_seat_no_log_is_opened_whether_followed_or_read(
    told: Service, counting: CountingCluster
) -> None:
    with told.client.stream("GET", FOLLOWED) as one, told.client.stream("GET", FOLLOWED) as two:
        assert (one.status_code, two.status_code) == (200, 200)
        assert counting.num_opened == 4
        for path in (PATH, FOLLOWED):
            answer = told.client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                429,
                "too_many_watchers",
            )
            assert "MICS_WATCHERS_PER_JOB" in answer.json()["error"]["remedy"]
        assert counting.num_opened == 4
    eventually(lambda: nothing_is_open(told, counting), "the end of all that was opened")
    assert set(told.client.get(PATH).text.splitlines()) == {"one", "supervisor: two"}
    eventually(lambda: nothing_is_open(told, counting), "the end of all that was opened")


def test_logs_that_are_broken_off_at_any_moment_leave_nothing_open(
    told: Service, counting: CountingCluster
) -> None:
    counting.logs[DRIVER] = ["x" * 1000] * 5000

    def break_off(after_bytes: int) -> None:
        asked = {"tail": "5000"} | ({"follow": "true"} if after_bytes % 2 else {})
        with (
            httpx.Client(base_url=told.client.base_url) as client,
            client.stream("GET", PATH, params=asked) as answer,
        ):
            for piece in answer.iter_raw():
                after_bytes -= len(piece)
                if after_bytes <= 0:
                    break

    for after_bytes in (0, 1, 500, 2001, 100_000, 100_001, 1_000_000, 1_000_001):
        break_off(after_bytes)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(break_off, [1, 0] * 10))
    eventually(lambda: nothing_is_open(told, counting), "the end of all that was opened")
