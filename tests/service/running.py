"""Runs the service on a real port, with a fake cluster behind it, and waits for what it does."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fakes import FakeCluster, specification
from fastapi import FastAPI

from service.app import build_app
from service.auth.attempts import FailedAttempts
from service.patience import PatientProtocol
from service.settings import Settings

DEADLINE_S = 20.0


class Service:
    """A running service and what tests do with it."""

    def __init__(
        self, client: httpx.Client, cluster: FakeCluster, settings: Settings, app: FastAPI
    ):
        self.client = client
        self.cluster = cluster
        self.settings = settings
        self.app = app

    def reset_attempts(self) -> None:
        """Forget the failed logins of the tests before: all come from one address."""
        self.app.state.services.authenticator._failures = FailedAttempts()

    def submit(self, **changes: Any) -> str:
        """Submit a job, and wait until the cluster has it: that goes on behind the answer."""
        answer = self.client.post("/api/v1/jobs", json=specification(**changes))
        assert answer.status_code == 201, answer.text
        job_id = str(answer.json()["job_id"])
        eventually(lambda: job_id in self.cluster.drivers, f"the driver of {job_id}")
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def wait_for(self, job_id: str, **wanted: Any) -> dict[str, Any]:
        """Wait until the job is known and its fields are as wanted."""

        def probe() -> dict[str, Any] | None:
            answer = self.client.get(f"/api/v1/jobs/{job_id}")
            if answer.status_code == 404:
                return None
            found = dict(answer.json())
            return found if wanted.items() <= found.items() else None

        return eventually(probe, f"job {job_id} with {wanted}")


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document, of a service that nobody starts."""
    with tempfile.TemporaryDirectory() as folder:
        app = build_app(Settings(data_directory=Path(folder)), FakeCluster())
        document: dict[str, Any] = app.openapi()
        app.state.services.store.close()
    return document


def eventually(probe: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true answer of `probe`; fails with `what` was missing at the deadline."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} was missing after {deadline_s} s")


@contextmanager
def run_service(settings: Settings, cluster: FakeCluster) -> Iterator[Service]:
    app = build_app(settings, cluster)
    config = uvicorn.Config(
        app,
        port=0,
        log_level="warning",
        http=PatientProtocol,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, "the server")
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client:
            yield Service(client, cluster, settings, app)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the server did not stop"
        assert not cluster.was_left_open, "the service left its connection open"
