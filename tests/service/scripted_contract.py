"""The scripted API with the whole contract: paging, keys, tokens, pause, logs, placement, cluster.

What it answers is written down here by hand, as the contract has it, not made by the client's own
models: a field that is read under another name shows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from scripted_api import ScriptedApi
from scripted_job import ScriptedJob

from mics_core.errors import JobConflictError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import CheckpointEvent, JobState


class ContractApi(ScriptedApi):
    """A scripted API that keeps to the contract of the whole API."""

    def __init__(self) -> None:
        super().__init__()
        self.token: str | None = None
        """The one token that is valid; none needs none."""
        self.keys: dict[str, str] = {}
        self.deleted: list[str] = []
        self.page_size = 2
        self.log_lines = [f"line {number}" for number in range(5)]
        self.late_line = threading.Event()
        """Lets a followed log say its last line."""

    def build_app(self) -> FastAPI:
        app = super().build_app()

        @app.middleware("http")
        async def ask_for_token(request: Request, call_next: Any) -> Response:
            given = request.headers.get("authorization", "")
            if self.token is not None and given != f"Bearer {self.token}":
                remedy = "Set MICS_TOKEN to a token of `mics token create`."
                error = {"code": "token_required", "message": "A token is needed."}
                return JSONResponse({"error": error | {"remedy": remedy}}, 401)
            answer: Response = await call_next(request)
            return answer

        router = APIRouter(prefix="/api/v1")
        self._add_jobs(router)
        self._add_control(router)
        self._add_history(router)
        self._add_places(router)
        # Before those of the base, some of which it replaces.
        app.router.routes[:0] = router.routes
        return app

    def _add_jobs(self, router: APIRouter) -> None:
        @router.get("/jobs")
        def list_jobs(
            state: Annotated[list[str], Query()] = [],  # noqa: B006
            owner: str | None = None,
            label: Annotated[list[str], Query()] = [],  # noqa: B006
            limit: int | None = None,
            cursor: str | None = None,
        ) -> dict[str, Any]:
            self.calls.append(("GET", "/api/v1/jobs", {"owner": owner, "label": label}))
            jobs = sorted(self.jobs.values(), key=lambda job: (-job.created, job.job_id))
            jobs = [job for job in jobs if not state or str(job.state) in state]
            first = int(cursor or 0)
            last = first + (limit or self.page_size)
            return {
                "jobs": [job.summary().model_dump(mode="json") for job in jobs[first:last]],
                "next_cursor": str(last) if last < len(jobs) else None,
            }

        @router.post("/jobs", status_code=201)
        def submit(
            value: dict[str, Any], idempotency_key: Annotated[str | None, Header()] = None
        ) -> Any:
            if idempotency_key in self.keys:
                return self.find(self.keys[idempotency_key]).detail()
            job = ScriptedJob(f"job-{len(self.jobs) + 1}", parse_job_spec(value))
            if idempotency_key is not None:
                self.keys[idempotency_key] = job.job_id
            return self.add(job).detail()

        @router.delete("/jobs/{job_id}", status_code=204)
        def delete(job_id: str) -> None:
            if not self.find(job_id).state.is_final:
                raise JobConflictError(f"Job {job_id} has not ended.", remedy="Cancel it first.")
            del self.jobs[job_id]
            self.deleted.append(job_id)

    def _add_control(self, router: APIRouter) -> None:
        @router.post("/jobs/{job_id}/scale")
        def scale(job_id: str, value: dict[str, int]) -> Any:
            if "groups" in value:
                self.find(job_id).scale(value["groups"])
            return self.find(job_id).detail()

        @router.post("/jobs/{job_id}/pause")
        def pause(job_id: str) -> Any:
            job = self.find(job_id)
            if job.state.is_at_rest:
                raise JobConflictError(f"Job {job_id} is {job.state}.", remedy="Let it be.")
            job.set_state(JobState.PAUSED, "It was paused through the service.")
            return job.detail()

        @router.post("/jobs/{job_id}/resume")
        def resume(job_id: str) -> Any:
            job = self.find(job_id)
            if job.state is not JobState.PAUSED:
                raise JobConflictError(f"Job {job_id} is not paused.", remedy="Pause it first.")
            job.set_state(JobState.PENDING, "It goes on from its checkpoint.")
            return job.detail()

    def _add_history(self, router: APIRouter) -> None:
        @router.get("/jobs/{job_id}/events/list")
        def list_events(
            job_id: str,
            after: int = 0,
            limit: int = 500,
            kind: Annotated[list[str], Query()] = [],  # noqa: B006
        ) -> dict[str, Any]:
            news = [event for event in self.find(job_id).events if event.sequence > after]
            found = [event for event in news if not kind or event.kind in kind][:limit]
            return {
                "events": [event.model_dump(mode="json") for event in found],
                "next_after": found[-1].sequence if found else after,
            }

        @router.get("/jobs/{job_id}/throughput")
        def throughput(
            job_id: str, points: int = 500, first_step: int = 0, last_step: int = 1 << 60
        ) -> dict[str, Any]:
            records = self.find(job_id).records
            chosen = [record for record in records if first_step <= record.step <= last_step]
            per_point = max(1, -(-len(chosen) // points))
            extra = {"samples_per_s": 64.0, "tflops_per_worker": None, "mfu": None, "goodput": 0.97}
            return {
                "job_id": job_id,
                "tokens_per_s": chosen[-1].tokens_per_s if chosen else None,
                "goodput": 0.97,
                "first_time": records[0].time if records else None,
                "mfu": None,
                "steps_per_point": per_point,
                "records": [
                    record.model_dump(mode="json", exclude={"communication_s"})
                    | extra
                    | {"communication_share": 0.25}
                    for record in chosen[per_point - 1 :: per_point]
                ],
            }

        @router.get("/jobs/{job_id}/logs")
        def logs(
            job_id: str, tail: int = 1000, worker: str | None = None, follow: bool = False
        ) -> Response:
            self.find(job_id)
            whose = f"worker {worker}" if worker else "driver"

            def lines() -> Iterator[str]:
                for line in self.log_lines[-tail:]:
                    yield f"{whose}: {line}\n"
                if follow:
                    assert self.late_line.wait(20), "nobody let the last line go"
                    yield f"{whose}: the end\n"

            return StreamingResponse(lines(), media_type="text/plain")

        @router.get("/jobs/{job_id}/checkpoints")
        def checkpoints(job_id: str) -> dict[str, Any]:
            found = [e for e in self.find(job_id).events if isinstance(e, CheckpointEvent)]
            keys = ("step", "path", "time", "error")
            return {"checkpoints": [{key: getattr(e, key) for key in keys} for e in found]}

    def _add_places(self, router: APIRouter) -> None:
        @router.get("/jobs/{job_id}/placement")
        def placement(job_id: str) -> dict[str, Any]:
            job = self.find(job_id)
            workers = [
                worker.model_dump(mode="json")
                | {"group_id": group.group_id, "group_state": group.state}
                for group in job.groups.values()
                for worker in group.workers
            ]
            return {"generation": len(job.generations), "workers": workers}

        @router.get("/cluster")
        def cluster() -> dict[str, Any]:
            node = {
                "node_id": "ab" * 28,
                "host": "10.0.0.4",
                "state": "alive",
                "is_head": False,
                "resources": {"CPU": 2.0},
                "used": {"CPU": 1.0},
                "workers": [{"job_id": "placed", "group_id": 0, "rank": 1}],
                "free_workers": 1,
            }
            return {"nodes": [node], "pending": [{"resources": {"CPU": 2.0}, "count": 3}]}
