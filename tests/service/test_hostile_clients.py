"""Clients that inject, dawdle, pile up or go away leave the service as it was."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import psutil
import pytest
from fakes import FakeCluster, specification
from postgres import DATABASES, database_of
from running import Service, eventually, run_service
from sqlalchemy import inspect

from mics_core.errors import ClusterError
from mics_core.spec.nodes import LogSource
from service import guards
from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.database import Database
from service.patience import PatientProtocol
from service.settings import Settings
from service.store import Store

INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE jobs; --",
    '" OR ""="',
    "1 UNION SELECT digest FROM tokens",
    "%27%20OR%201%3D1--",
    "\\'; DELETE FROM events; --",
    "%",
    "_",
]

SECRET_PLACES = ["/tmp/ray/session_latest/sockets/raylet", "/srv/hidden/app.py", "s3cr3t-value"]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with small limits and one live job, `crowded`."""
    settings = Settings(
        data_directory=tmp_path_factory.mktemp("crowd"),
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
        poll_pause_s=0.01,
        ping_interval_s=0.1,
        watchers=60,
        watchers_per_job=50,
    )
    with run_service(settings, FakeCluster()) as service:
        for job_id in ("crowded", "quiet"):
            service.cluster.start_supervisor(job_id).train(3)
            service.wait_for(job_id, step=3)
        yield service


@pytest.fixture(scope="module", params=DATABASES)
def stored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with one job, `kept`, that nobody may spoil."""
    folder = tmp_path_factory.mktemp("stored")
    url = database_of(request, folder)
    settings = Settings(data_directory=folder, database_url=url, discovery_interval_s=0.05)
    with run_service(settings, FakeCluster()) as service:
        service.cluster.start_supervisor("kept").train(3)
        service.wait_for("kept", step=3)
        yield service


def connect(service: Service) -> socket.socket:
    address = service.client.base_url
    return socket.create_connection((address.host, address.port), timeout=10)


def open_streams(
    service: Service, job_id: str, number: int, what: str = "events"
) -> list[socket.socket]:
    """Ask for a job's events, or its log; returns once the first bytes of all answers are there."""
    connections = [connect(service) for _ in range(number)]
    ask = f"GET /api/v1/jobs/{job_id}/{what} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for connection in connections:
        connection.sendall(ask.encode())
    for connection in connections:
        assert connection.recv(32)
    return connections


def status_of(connection: socket.socket) -> int:
    found = re.match(rb"HTTP/1.1 (\d+)", connection.recv(100))
    assert found
    return int(found[1])


def num_own_threads() -> int:
    """Threads outside the two pools, which are bounded and come and go as they are needed."""
    pools = ("asyncio_", "AnyIO worker thread")
    return sum(not thread.name.startswith(pools) for thread in threading.enumerate())


def loop_of(service: Service) -> asyncio.AbstractEventLoop:
    (loop,) = service.cluster._connections
    return loop


def num_tasks(loop: asyncio.AbstractEventLoop) -> int:
    """How many tasks of the service are not done; asked in its own thread, where they begin."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1  # without this one

    return asyncio.run_coroutine_threadsafe(count(), loop).result(10)


def num_seats(service: Service) -> int:
    return service.app.state.services.hub.num_seats  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["events", "logs?follow=true"])
def test_a_thousand_aborted_watchers_leave_nothing_behind(crowd: Service, what: str) -> None:
    loop = loop_of(crowd)
    crowd.cluster.logs[LogSource(supervisor_of="crowded")] = ["a line"] * 3

    def abort_hundreds() -> None:
        for _ in range(8):
            for connection in open_streams(crowd, "crowded", 50, what):
                # A reset, as of a machine that is gone, and not an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.close()
            eventually(lambda: num_seats(crowd) == 0, "the end of all streams")
        gc.collect()

    process = psutil.Process()
    tasks = num_tasks(loop)
    abort_hundreds()  # what is allocated once is there after these
    threads, files, memory = num_own_threads(), process.num_fds(), process.memory_info().rss
    abort_hundreds()
    assert crowd.app.state.services.hub.num_watchers == 0
    assert num_own_threads() <= threads
    eventually(lambda: process.num_fds() <= files + 2, "the end of the connections")
    # Two more at most: sse-starlette's watch for the server's end, and a follower between two asks.
    eventually(lambda: num_tasks(loop) <= tasks + 2, "the end of the streams' tasks")
    # 400 watchers: 10 KiB that each leaves behind are seen.
    assert process.memory_info().rss < memory + 4 * 2**20
    assert crowd.client.get("/api/v1/jobs/crowded").status_code == 200


def test_watchers_beyond_the_limits_are_told_so_and_the_others_go_on(crowd: Service) -> None:
    streams = open_streams(crowd, "crowded", 50)
    answer = crowd.client.get("/api/v1/jobs/crowded/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_watchers")
    assert "MICS_WATCHERS_PER_JOB" in answer.json()["error"]["remedy"]
    streams += open_streams(crowd, "quiet", 10)
    answer = crowd.client.get("/api/v1/jobs/quiet/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_watchers")
    assert answer.headers["retry-after"]
    streams.pop().close()
    eventually(lambda: num_seats(crowd) < 60, "a free seat")
    streams += open_streams(crowd, "quiet", 1)
    for connection in streams:
        connection.close()
    eventually(lambda: num_seats(crowd) == 0, "the end of all streams")


def test_slow_clients_are_given_up_while_others_are_served(
    crowd: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientProtocol, "head_s", 0.5)
    monkeypatch.setattr(guards, "BODY_S", 0.5)
    began = time.monotonic()
    silent = [connect(crowd) for _ in range(20)]
    for connection in silent[10:]:
        connection.sendall(b"GET /api/v1/jobs HTTP/1.1\r\nHost: local")
    slow_body = connect(crowd)
    slow_body.sendall(
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    # One that was served well and then dawdles over its second request.
    second = connect(crowd)
    second.sendall(b"GET /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status_of(second) == 200
    second.sendall(b"GET /api/v1/jobs HTTP")
    assert crowd.client.get("/api/v1/jobs").status_code == 200
    assert status_of(slow_body) == 408
    for connection in [*silent, second]:
        while connection.recv(4096):
            pass
        connection.close()
    assert 0.4 < time.monotonic() - began < 10.0
    slow_body.close()


def test_oversized_heads_and_bodies_are_refused(crowd: Service) -> None:
    answer = crowd.client.get("/api/v1/jobs", headers={"x-much": "x" * 100_000})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "bad_request")
    assert error["message"] == "The head of the request exceeds 65536 bytes."
    assert error["remedy"] == "Send a shorter address, and fewer or shorter headers."
    assert answer.headers["connection"] == "close"
    for path in ("/api/v1/jobs", "/api/v1/jobs/validate", "/api/v1/plans", "/api/v1/session"):
        answer = crowd.client.post(path, content=b'{"token": "' + b"x" * 300_000 + b'"}')
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS to a port that has none
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_in_the_form_of_all_errors(
    crowd: Service, head: bytes
) -> None:
    with connect(crowd) as connection:
        connection.sendall(head)
        answer = HTTPResponse(connection)
        answer.begin()
        error = json.loads(answer.read())["error"]
        assert (answer.status, error["code"]) == (400, "bad_request")
        assert answer.getheader("content-type") == "application/json"
        assert error["message"].startswith("This is no request in HTTP/1.1: ")
        assert error["remedy"].startswith("Send one, with a Host")
        assert not connection.recv(1), "the connection stays open"


def test_a_body_that_breaks_off_into_nonsense_ends_the_connection(crowd: Service) -> None:
    with connect(crowd) as connection:
        head = (
            b"POST /api/v1/plans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"zzz\r\n{\r\n")
        assert status_of(connection) == 400
        while connection.recv(4096):
            pass
    assert crowd.client.get("/api/v1/jobs").status_code == 200


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_that_means_something_to_sql_means_nothing_here(stored: Service, text: str) -> None:
    quoted = httpx.QueryParams({"x": text})["x"]
    paths = [f"/api/v1/jobs/{quoted}", f"/api/v1/jobs/{quoted}/events"]
    paths += [f"/api/v1/jobs/{quoted}/throughput"]
    for path in paths:
        answer = stored.client.get(path)
        assert answer.status_code in (400, 404), answer.text
    for name in ("state", "label", "owner", "cursor", "limit", "after"):
        answer = stored.client.get("/api/v1/jobs", params={name: text})
        assert answer.status_code in (200, 422), answer.text
    submitted = stored.client.post("/api/v1/jobs", json=specification(name=text))
    assert submitted.status_code == 201
    job = stored.client.get(f"/api/v1/jobs/{submitted.json()['job_id']}").json()
    assert job["name"] == text
    stored.client.post(f"/api/v1/jobs/{job['job_id']}/cancel")
    database = Database(stored.settings.database)
    with database.read() as connection:
        tables = set(inspect(connection).get_table_names())
    database.close()
    assert {"jobs", "events", "steps", "tokens"} <= tables
    assert stored.client.get("/api/v1/jobs/kept").json()["step"] == 3


def test_a_token_of_another_name_is_not_revoked_by_a_pattern(database_url: str) -> None:
    store = Store(database_url)
    tokens = TokenStore(store.database)
    plain = tokens.create("ada", Role.ADMIN)
    for text in INJECTIONS:
        assert tokens.verify(text) is None
        with pytest.raises(Exception, match="no valid token"):
            tokens.revoke(text)
    assert tokens.verify(plain) is not None
    store.close()


class Broken:
    """Stands for anything that fails with words that nobody else shall read."""

    def __init__(self, error: type[Exception]):
        self._error = error

    def fail(self, *_arguments: object, **_options: object) -> None:
        raise self._error(f"cannot open {SECRET_PLACES[0]}, {SECRET_PLACES[1]} ({self._error})")

    async def fail_later(self, *_arguments: object, **_options: object) -> None:
        self.fail()


@pytest.mark.parametrize("error", [ClusterError, RuntimeError, OSError])
@pytest.mark.parametrize("what", ["the cluster", "the store"])
def test_no_route_leaks_a_path_a_token_or_a_trace(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: type[Exception], what: str
) -> None:
    job_id = service.submit()
    store = Store(service.settings.database)
    token = TokenStore(store.database).create("ada", Role.ADMIN)
    store.close()
    # One connection each: the server closes it after an answer that it did not expect to give.
    client = httpx.Client(
        base_url=service.client.base_url,
        headers={"authorization": f"Bearer {token}", "connection": "close"},
    )
    schema = client.get("/openapi.json").json()
    broken = Broken(error)
    if what == "the cluster":
        for name in ("submit", "check_layout", "scale", "cancel", "health", "stop_driver"):
            monkeypatch.setattr(service.cluster, name, broken.fail_later)
    else:
        for name in ("job", "list_jobs", "last_sequence", "open_job", "throughput", "owner_of"):
            monkeypatch.setattr(Store, name, broken.fail)
    bodies = [specification(), {"groups": 2}, {"groups": "x"}, {"token": token + "x"}, [token]]
    statuses = set()
    for path, methods in schema["paths"].items():
        for method in methods:
            for body in bodies if method == "post" else [None]:
                address = path.replace("{job_id}", job_id)
                with client.stream(method, address, json=body) as answer:
                    statuses.add(answer.status_code)
                    # A stream that does begin goes on for ever; its first piece is enough.
                    text = next(answer.iter_text(), "")
                text += json.dumps(dict(answer.headers))
                secrets = [*SECRET_PLACES, str(service.settings.data_directory), "site-packages"]
                secrets += ["Traceback", "sqlalchemy", sys.prefix, token.split("_", 2)[2]]
                found = [secret for secret in secrets if secret in text]
                assert not found, (method, path, body, text)
                if answer.is_error and path != "/readyz":
                    assert '{"error":{"code":"' in text
    client.close()
    assert statuses & {500, 503}, "nothing was provoked"


def test_the_service_never_imports_a_users_module(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_own.py").write_text("raise SystemExit('the service ran my code')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = specification(
        model={"callable": "users_own:build"},
        data={"kind": "callable", "callable": "users_own:data"},
    )
    answers = [
        service.client.post("/api/v1/jobs/validate", json=own),
        service.client.post("/api/v1/plans", json={"job": own, "cluster": "p4d.24xlarge"}),
        service.client.post("/api/v1/jobs", json=own),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 201], answers[0].text
    job_id = answers[2].json()["job_id"]
    service.cluster.start_supervisor(job_id).finish()
    service.wait_for(job_id, state="finished")
    assert "users_own" not in sys.modules
