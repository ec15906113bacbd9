"""Streams that take one of the seats of the hub, so that no more are open than may be."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.watchers import WatcherHub

__all__ = ["SeatedResponse"]


class SeatedResponse(Response):
    """A stream that takes a seat from its first byte to its last; without one it is refused.

    Taken when the answer begins and not in the route: nothing comes between that and the end, so
    that no seat is left behind by whoever goes away in the meantime. The stream is opened after
    that, so that one which is refused costs nothing.

    Args:
        hub: Has the seats.
        job_id: The job that is watched.
        stream: Opens the answer, and closes what is behind it.
    """

    def __init__(self, hub: WatcherHub, job_id: str, stream: AbstractAsyncContextManager[Response]):
        super().__init__()
        self._seat = hub.seat(job_id)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; what is raised before the first byte is answered as if by the route.

        Raises:
            RequestError: There is no room.
            MicsError: The stream cannot be opened.
        """
        with self._seat:
            async with self._stream as stream:
                await stream(scope, receive, send)
