"""The route that shows what the processes of a job write."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from service.errors import ERROR_ANSWERS
from service.logs import MAXIMUM_LINES
from service.routes.seats import SeatedResponse
from service.routes.state import JobId, Services, ServicesOf
from service.schemas import ErrorBody

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["logs"])

_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Lines of text.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
    404: {"model": ErrorBody, "description": "There is no such job, worker or log."},
}


@router.get(
    "/{job_id}/logs",
    summary="Show or follow the logs",
    response_class=StreamingResponse,
    responses=_LINES | {status: ERROR_ANSWERS[status] for status in (422, 429, 503)},
)
async def show_logs(
    job_id: JobId,
    services: ServicesOf,
    worker: Annotated[
        str | None,
        Query(
            max_length=30,
            description="`GROUP.RANK` for one worker, by partition group and rank in it; else the"
            " driver and the supervisor.",
            examples=["0.1"],
        ),
    ] = None,
    tail: Annotated[
        int,
        Query(
            ge=1,
            le=MAXIMUM_LINES,
            description="Lines of the past, of each process.",
            examples=[200],
        ),
    ] = 1000,
    follow: Annotated[
        bool, Query(description="Go on until the job ends.", examples=[True])
    ] = False,
) -> Response:
    """Show what the driver and the supervisor of a job, or one of its workers, have written.

    Lines of the supervisor begin with `supervisor: `.
    """
    stream = _stream(services, job_id, worker, tail, follow=follow)
    return SeatedResponse(services.hub, job_id, stream)


@asynccontextmanager
async def _stream(
    services: Services, job_id: str, worker: str | None, tail: int, *, follow: bool
) -> AsyncIterator[Response]:
    async with services.logs.opened(job_id, worker, tail, follow=follow) as lines:
        yield StreamingResponse(lines, media_type="text/plain; charset=utf-8")
