"""The routes that stream and list a job's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from sse_starlette import EventSourceResponse

from service.errors import ERROR_ANSWERS
from service.routes.seats import SeatedResponse
from service.routes.state import JobId, Services, ServicesOf
from service.schemas import EventList
from service.watchers import follow_events

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["events"])

_LARGEST = 2**63 - 1

EventKind = Literal["state", "group", "generation", "step", "scale", "checkpoint", "regroup"]

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One message for each event: `event` is its kind, `id` its sequence number,"
        " `data` the event as JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "The job has ended and has no event beyond `after`."},
}


@router.get(
    "/{job_id}/events",
    summary="Stream the events",
    response_class=EventSourceResponse,
    responses=_STREAM | {status: ERROR_ANSWERS[status] for status in (404, 422, 429, 503)},
)
async def stream_events(
    job_id: JobId,
    services: ServicesOf,
    after: Annotated[
        int,
        Query(
            ge=0,
            le=_LARGEST,
            description="Sequence number of the last event known.",
            examples=[260],
        ),
    ] = 0,
    last_event_id: Annotated[
        int | None,
        Header(ge=0, le=_LARGEST, description="The same; goes before `after`.", examples=[260]),
    ] = None,
) -> Response:
    """Stream the events of a job as server-sent events: history first, then live.

    The stream ends after the job's final `state` event. A browser that was cut off goes on where
    it was, by the header that it sends by itself.
    """
    # A browser repeats the address with its old `after`, so the header is the newer of the two.
    known = after if last_event_id is None else last_event_id
    # In this order: of a job that has ended, the number cannot be an old one.
    is_open = await asyncio.to_thread(services.store.open_job, job_id) is not None
    last_sequence = await asyncio.to_thread(services.store.last_sequence, job_id)
    if not is_open and known >= last_sequence:
        # The one answer after which a browser does not connect again.
        return Response(status_code=204)
    return SeatedResponse(services.hub, job_id, _stream(services, job_id, known))


@router.get(
    "/{job_id}/events/list",
    summary="List the events",
    responses={404: ERROR_ANSWERS[404], 422: ERROR_ANSWERS[422]},
)
async def list_events(
    job_id: JobId,
    services: ServicesOf,
    after: Annotated[
        int,
        Query(
            ge=0,
            le=_LARGEST,
            description="Sequence number of the last event known.",
            examples=[260],
        ),
    ] = 0,
    limit: Annotated[
        int, Query(ge=1, le=5000, description="Most events to return.", examples=[100])
    ] = 500,
    kind: Annotated[
        list[EventKind] | None,
        Query(
            description="Only events of this kind; may be repeated for any of several.",
            examples=[["generation", "checkpoint"]],
        ),
    ] = None,
) -> EventList:
    """List the events of a job, oldest first."""
    return await services.jobs.events(job_id, after, limit, kind or ())


@asynccontextmanager
async def _stream(services: Services, job_id: str, after: int) -> AsyncIterator[Response]:
    async with aclosing(_messages(services, job_id, after)) as messages:
        yield EventSourceResponse(messages, ping=services.settings.ping_interval_s, sep="\n")


async def _messages(services: Services, job_id: str, after: int) -> AsyncGenerator[bytes]:
    async for told in follow_events(services.store, services.hub, job_id, after):
        yield told.message
