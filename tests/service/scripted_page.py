"""The scripted API with all that the page asks for: filters, sessions, logs, plans, the cluster.

What it answers is written down as the contract has it; specifications and plans are checked and
made by the real code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from scripted_api import ScriptedApi
from scripted_job import ScriptedJob

from mics_core.errors import JobConflictError, ScaleError
from mics_core.spec import parse_job_spec
from mics_core.spec.planning import plan_job
from mics_core.spec.status import CheckpointEvent, GroupState, JobState
from service.bodies import parse_body
from service.plans import answer_of, cluster_of, known_shape, with_nodes

_COOKIE = "mics_session"
_GONE = (GroupState.LEFT, GroupState.LOST)


class PageApi(ScriptedApi):
    """A scripted API whose jobs have labels, logs and bounds, and which may ask for a token."""

    def __init__(self) -> None:
        super().__init__()
        self.token: str | None = None
        """The one token that is valid; none needs none."""
        self.role = "user"
        self.labels: dict[str, dict[str, str]] = {}
        self.owners: dict[str, str] = {}
        self.bounds: dict[str, dict[str, int]] = {}
        self.logs: dict[str, list[str]] = {"": []}
        """Lines by worker, such as `0.1`; those of the driver under the empty name."""
        self.pending: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        """Idempotency keys of the submissions, in order."""

    def build_app(self) -> FastAPI:
        app = super().build_app()

        @app.middleware("http")
        async def ask_for_token(
            request: Request, call_next: Callable[[Request], Awaitable[Response]]
        ) -> Response:
            is_page = not request.url.path.startswith("/api/")
            is_login = request.url.path == "/api/v1/session" and request.method == "POST"
            is_known = self.token is None or request.cookies.get(_COOKIE) == self.token
            if is_page or is_login or is_known:
                return await call_next(request)
            return _refusal(401, "token_required", "A token is needed.", "Log in.")

        router = APIRouter(prefix="/api/v1")
        self._add_session(router)
        self._add_jobs(router)
        self._add_control(router)
        self._add_history(router)
        self._add_cluster(router)
        # Before those of the base, some of which it replaces.
        app.router.routes[:0] = router.routes
        return app

    def shown(self, job: ScriptedJob, *, is_whole: bool = True) -> dict[str, Any]:
        answer = (job.detail() if is_whole else job.summary()).model_dump(mode="json")
        bounds = self.bounds.get(job.job_id, {})
        answer |= {"owner": self.owners.get(job.job_id), "labels": self.labels.get(job.job_id, {})}
        answer["maximum_groups"] = bounds.get("maximum", answer["maximum_groups"])
        if answer.get("status"):
            for name, value in bounds.items():
                answer["status"][f"{name}_groups"] = value
        return answer

    def _add_session(self, router: APIRouter) -> None:
        def who() -> dict[str, Any]:
            name = "ada" if self.token else "local"
            return {"name": name, "role": self.role, "requires_token": self.token is not None}

        @router.get("/session")
        def show() -> dict[str, Any]:
            return who()

        @router.post("/session")
        def log_in(value: Annotated[dict[str, str], Body()]) -> Response:
            if value["token"] != self.token:
                return _refusal(401, "token_invalid", "The token is not valid.", "Ask for another.")
            answer = JSONResponse(who())
            answer.set_cookie(_COOKIE, value["token"], httponly=True, samesite="strict")
            return answer

        @router.delete("/session", status_code=204)
        def log_out(response: Response) -> None:
            response.delete_cookie(_COOKIE)

    def _add_jobs(self, router: APIRouter) -> None:
        @router.get("/jobs")
        def list_jobs(
            state: Annotated[list[str] | None, Query()] = None,
            label: Annotated[list[str] | None, Query()] = None,
            owner: str | None = None,
            limit: int = 100,
            cursor: int = 0,
        ) -> dict[str, Any]:
            jobs = sorted(self.jobs.values(), key=lambda job: (-job.created, job.job_id))
            found = [
                job
                for job in jobs
                if (not state or job.state in state)
                and (not owner or self.owners.get(job.job_id) == owner)
                and all(
                    self.labels.get(job.job_id, {}).get(each.partition(":")[0])
                    == each.partition(":")[2]
                    for each in label or ()
                )
            ]
            last = cursor + limit
            return {
                "jobs": [self.shown(job, is_whole=False) for job in found[cursor:last]],
                "next_cursor": str(last) if last < len(found) else None,
            }

        async def specification(request: Request) -> Any:
            kind = request.headers["content-type"]
            return parse_job_spec(parse_body(await request.body(), is_yaml="yaml" in kind))

        @router.post("/jobs/validate")
        async def validate(request: Request) -> Any:
            return await specification(request)

        @router.post("/jobs", status_code=201)
        async def submit(
            request: Request, idempotency_key: Annotated[str | None, Header()] = None
        ) -> Any:
            self.keys.append(idempotency_key)
            job = ScriptedJob(f"job-{len(self.jobs) + 1}", await specification(request))
            return self.shown(self.add(job))

        @router.post("/plans")
        def plan(value: Annotated[dict[str, Any], Body()]) -> Any:
            spec = parse_job_spec(value["job"])
            cluster = cluster_of(spec, value["cluster"], may_read_files=False)
            cluster, model = with_nodes(cluster, value.get("nodes")), known_shape(spec)
            return answer_of(plan_job(spec, model, cluster), cluster, model, 100)

        @router.get("/jobs/{job_id}")
        def show(job_id: str) -> dict[str, Any]:
            return self.shown(self.find(job_id))

        @router.delete("/jobs/{job_id}", status_code=204)
        def delete(job_id: str) -> None:
            if not self.find(job_id).state.is_final:
                raise JobConflictError(f"Job {job_id} has not ended.", remedy="Cancel it first.")
            del self.jobs[job_id]

    def _add_control(self, router: APIRouter) -> None:
        @router.post("/jobs/{job_id}/scale")
        def scale(job_id: str, value: Annotated[dict[str, int], Body()]) -> dict[str, Any]:
            job, bounds = self.find(job_id), self.bounds.setdefault(job_id, {})
            bounds |= {name: value[name] for name in ("minimum", "maximum") if name in value}
            if bounds.get("maximum", 0) > 64:
                raise ScaleError(
                    "maximum exceeds the 64 micro-batches of a step.",
                    remedy="Choose at most 64.",
                    field="maximum",
                )
            if "groups" in value:
                job.scale(value["groups"])
            return self.shown(job)

        @router.post("/jobs/{job_id}/pause")
        def pause(job_id: str) -> dict[str, Any]:
            job = self.find(job_id)
            if job.state.is_at_rest:
                raise JobConflictError(f"Job {job_id} is {job.state}.", remedy="Let it be.")
            job.set_state(JobState.PAUSED, "Paused on request, at a step boundary.")
            return self.shown(job)

        @router.post("/jobs/{job_id}/resume")
        def resume(job_id: str) -> dict[str, Any]:
            job = self.find(job_id)
            job.set_state(JobState.PENDING, "Goes on from its newest checkpoint.")
            return self.shown(job)

        @router.post("/jobs/{job_id}/cancel")
        def cancel(job_id: str) -> dict[str, Any]:
            self.find(job_id).cancel()
            return self.shown(self.find(job_id))

    def _add_history(self, router: APIRouter) -> None:
        @router.get("/jobs/{job_id}/events/list")
        def list_events(
            job_id: str,
            after: int = 0,
            limit: int = 500,
            kind: Annotated[list[str] | None, Query()] = None,
        ) -> dict[str, Any]:
            events = self.find(job_id).events
            found = [event for event in events[after:] if not kind or event.kind in kind][:limit]
            # As the service does, past the events of other kinds.
            newest = found[-1].sequence if len(found) == limit else len(events)
            return {
                "events": [event.model_dump(mode="json") for event in found],
                "next_after": max(after, newest),
            }

        @router.get("/jobs/{job_id}/throughput")
        def throughput(job_id: str, points: int = 500) -> dict[str, Any]:
            records = self.find(job_id).records
            width = max(1, -(-len(records) // points))
            unknown = {"samples_per_s": None, "tflops_per_worker": None, "mfu": None}
            return {
                "job_id": job_id,
                "tokens_per_s": records[-1].tokens_per_s if records else None,
                "goodput": 0.97 if len(records) > 1 else None,
                "mfu": 0.412 if records else None,
                "steps_per_point": width,
                "records": [
                    record.model_dump(mode="json") | unknown
                    for record in records[width - 1 :: width]
                ],
            }

        @router.get("/jobs/{job_id}/logs")
        def logs(
            job_id: str, tail: int = 1000, worker: str = "", follow: bool = False
        ) -> StreamingResponse:
            job, lines = self.find(job_id), self.logs[worker]

            async def text() -> AsyncIterator[str]:
                sent = max(0, len(lines) - tail)
                while True:
                    for line in lines[sent:]:
                        yield f"{line}\n"
                    sent = len(lines)
                    if not follow or job.state.is_final:
                        return
                    await asyncio.sleep(0.02)

            return StreamingResponse(text(), media_type="text/plain")

        @router.get("/jobs/{job_id}/checkpoints")
        def checkpoints(job_id: str) -> dict[str, Any]:
            found = [each for each in self.find(job_id).events if isinstance(each, CheckpointEvent)]
            return {
                "checkpoints": [
                    {"step": e.step, "path": e.path, "time": e.time, "error": e.error or None}
                    for e in found
                ]
            }

    def _add_cluster(self, router: APIRouter) -> None:
        @router.get("/cluster")
        def cluster() -> dict[str, Any]:
            nodes: dict[str, dict[str, Any]] = {}
            for job in self.jobs.values():
                if job.state.is_at_rest:
                    continue
                for group in job.groups.values():
                    for worker in group.workers if group.state not in _GONE else ():
                        node = nodes.setdefault(worker.node_id, _node(worker.node_id, worker.host))
                        place = {"group_id": group.group_id, "rank": worker.rank}
                        node["workers"].append({"job_id": job.job_id} | place)
                        node["used"]["CPU"] += 1.0
                        node["free_workers"] -= 1
            return {"nodes": list(nodes.values()), "pending": self.pending}


def _node(node_id: str, host: str) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "host": host,
        "state": "alive",
        "is_head": host.endswith(".4"),
        "resources": {"CPU": 4.0},
        "used": {"CPU": 0.0},
        "workers": [],
        "free_workers": 4,
    }


def _refusal(status: int, code: str, message: str, remedy: str) -> JSONResponse:
    error = {"code": code, "message": message, "field": None, "remedy": remedy, "problems": []}
    return JSONResponse({"error": error}, status)
