"""Streams that take one of the seats of the hub, so that no more are open than may be."""

from __future__ import annotations

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import RequestError, error_response
from service.watchers import WatcherHub

__all__ = ["SeatedResponse"]


class SeatedResponse(Response):
    """A stream that takes a seat from its first byte to its last; without one it is refused.

    Taken when the answer begins and not in the route: nothing comes between that and the end, so
    that no seat is left behind by whoever goes away in the meantime.

    Args:
        hub: Has the seats.
        job_id: The job that is watched.
        stream: The answer.
    """

    def __init__(self, hub: WatcherHub, job_id: str, stream: Response):
        super().__init__()
        self._seat = hub.seat(job_id)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream, or answer that there is no room."""
        try:
            with self._seat:
                await self._stream(scope, receive, send)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
