"""A small real HTTP server that plays a scripted job, for tests of the client, CLI and page.

It keeps to the contract of the REST API but has neither Ray nor a database: the test (or the
script) calls the methods of `ScriptedJob`, and whoever is connected sees the events.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from scripted_job import ScriptedJob

from mics_core.errors import JobNotFoundError, MicsError
from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.status import StateEvent
from service.schemas import (
    ErrorBody,
    ErrorDetail,
    JobDetail,
    JobList,
    Throughput,
)

STATIC = Path(__file__).parents[2] / "service" / "static"


class ScriptedApi:
    """The server's state: its jobs, what was asked of it, and the faults it shows."""

    def __init__(self) -> None:
        self.jobs: dict[str, ScriptedJob] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.stream_starts: list[int] = []
        self.cut_after: int | None = None
        """Cut the next event stream, without a goodbye, after so many events."""
        self.cut_details = 0
        """Cut so many of the next answers about one job, without a goodbye."""
        self.health: dict[str, str] | None = None
        """What /healthz answers; without it there is no such path, as on another server."""
        self.url = ""

    def add(self, job: ScriptedJob) -> ScriptedJob:
        self.jobs[job.job_id] = job
        return job

    def find(self, job_id: str) -> ScriptedJob:
        if job_id not in self.jobs:
            raise JobNotFoundError(f"no job has the id {job_id!r}.", remedy="See `mics list`.")
        return self.jobs[job_id]

    def build_app(self) -> FastAPI:
        app = FastAPI()
        app.add_exception_handler(MicsError, _answer_of_error)

        @app.middleware("http")
        async def note_and_protect(request: Request, call_next: Any) -> Response:
            if request.method == "POST":
                body = await request.body()
                self.calls.append((request.method, request.url.path, body.decode()))
            elif self.cut_details and request.url.path.removeprefix("/api/v1/jobs/") in self.jobs:
                self.cut_details -= 1
                return Response("{", headers={"Content-Length": "1000"})
            answer: Response = await call_next(request)
            answer.headers["Content-Security-Policy"] = "default-src 'self'"
            return answer

        @app.get("/api/v1/jobs")
        def list_jobs() -> JobList:
            jobs = sorted(self.jobs.values(), key=lambda job: -job.created)
            return JobList(jobs=[job.summary() for job in jobs], next_cursor=None)

        @app.post("/api/v1/jobs/validate")
        def validate(value: dict[str, Any]) -> JobSpec:
            return parse_job_spec(value)

        @app.post("/api/v1/jobs", status_code=201)
        def submit(value: dict[str, Any]) -> JobDetail:
            job = ScriptedJob(f"job-{len(self.jobs) + 1}", parse_job_spec(value))
            return self.add(job).detail()

        @app.get("/api/v1/jobs/{job_id}")
        def show(job_id: str) -> JobDetail:
            return self.find(job_id).detail()

        @app.post("/api/v1/jobs/{job_id}/scale")
        def scale(job_id: str, value: dict[str, int]) -> JobDetail:
            self.find(job_id).scale(value["groups"])
            return self.find(job_id).detail()

        @app.post("/api/v1/jobs/{job_id}/cancel")
        def cancel(job_id: str) -> JobDetail:
            self.find(job_id).cancel()
            return self.find(job_id).detail()

        @app.get("/api/v1/jobs/{job_id}/throughput")
        def throughput(job_id: str, points: int = 500) -> Throughput:
            return self.find(job_id).throughput(points)

        @app.get("/api/v1/jobs/{job_id}/events")
        def events(job_id: str, request: Request, after: int = 0) -> Response:
            job = self.find(job_id)
            after = max(after, int(request.headers.get("Last-Event-ID", "0")))
            self.stream_starts.append(after)
            if job.state.is_final and after >= len(job.events):
                return Response(status_code=204)
            cut_after, self.cut_after = self.cut_after, None
            return StreamingResponse(
                _event_lines(job, after, cut_after), media_type="text/event-stream"
            )

        @app.get("/healthz")
        def health() -> JSONResponse:
            return JSONResponse(self.health or {}, 200 if self.health else 404)

        @app.get("/")
        def page() -> FileResponse:
            return FileResponse(STATIC / "index.html")

        app.mount("/static", StaticFiles(directory=STATIC))
        return app


async def _event_lines(job: ScriptedJob, after: int, cut_after: int | None) -> AsyncIterator[str]:
    sent = 0
    yield "retry: 100\n\n"  # so that a test does not wait for the browser's three seconds
    while True:
        for event in job.events[after:]:
            if sent == cut_after:
                # Half an event, then the connection breaks: uvicorn closes it on the error.
                yield f"event: {event.kind}\ndata: {{"
                raise ConnectionResetError("the script cuts the stream here")
            yield f"event: {event.kind}\nid: {event.sequence}\ndata: {event.model_dump_json()}\n\n"
            after, sent = event.sequence, sent + 1
            if isinstance(event, StateEvent) and event.state.is_final:
                return
        await asyncio.sleep(0.02)


async def _answer_of_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MicsError)
    detail = ErrorDetail.of(error, "There is none.")
    status = {"job_not_found": 404, "invalid_specification": 422}.get(error.code, 409)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status_code=status)


@contextmanager
def serving(api: ScriptedApi) -> Iterator[ScriptedApi]:
    """Serve `api` on a free port of this machine until the block ends."""
    config = uvicorn.Config(
        api.build_app(), log_level="critical", timeout_graceful_shutdown=1, lifespan="off"
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    api.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield api
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive(), "the scripted server did not stop within 20 s"
