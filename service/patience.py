"""Ends connections of clients that never finish saying what they want, or never take the answer.

uvicorn waits for the head of a request as long as it takes, so that somebody who opens connections
and sends a byte now and then holds them all; and it waits as long for room to write, so that
somebody who watches a job without reading keeps a stream of those that may be open. Here a head has
to be there in time, and what is written has to be taken in time; a pause inside a body is for
`service.guards`. What is no HTTP at all is answered in the one form of errors.
"""

from __future__ import annotations

import asyncio
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.errors import RequestError, error_response

__all__ = ["PatientProtocol"]

_MAXIMUM_HEAD_BYTES = 64 * 1024
"""What uvicorn lets a head have."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 with limits on the time that a request's head and the taking of an answer need."""

    head_s = 15.0
    take_s = 30.0
    """Longest time in which nothing can be written, because the client does not read."""

    _head_deadline: asyncio.TimerHandle | None = None
    _take_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that has begun after an answer counts anew."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_watching_head()
        self._stop_watching_taking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read: the buffers are full."""
        super().pause_writing()
        self._stop_watching_taking()
        self._take_deadline = self.loop.call_later(self.take_s, self._cut_off)

    def resume_writing(self) -> None:
        """Write on: the client has read most of what there was."""
        self._stop_watching_taking()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request that can be read, in the form of all errors; then close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # An answer has begun already, such as one to a body that turned out to be no body.
            self.transport.close()
            return
        answer = error_response(_unreadable(msg, sys.exception()))
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching_head()
        elif self._head_deadline is None:
            self._head_deadline = self.loop.call_later(self.head_s, self._give_up)

    def _stop_watching_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _stop_watching_taking(self) -> None:
        if self._take_deadline is not None:
            self._take_deadline.cancel()
            self._take_deadline = None

    def _give_up(self) -> None:
        self._head_deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _cut_off(self) -> None:
        self._take_deadline = None
        # An orderly end would wait until the client has read what is in the buffers.
        self.transport.abort()


def _unreadable(message: str, cause: BaseException | None) -> RequestError:
    """Return the error of a request that could not be read.

    Args:
        message: What uvicorn says of it.
        cause: What the parser raised.
    """
    if isinstance(cause, h11.RemoteProtocolError) and cause.error_status_hint == 431:
        return RequestError(
            400,
            f"The head of the request exceeds {_MAXIMUM_HEAD_BYTES} bytes.",
            remedy="Send a shorter address, and fewer or shorter headers.",
        )
    return RequestError(
        400,
        f"This is no request in HTTP/1.1: {str(cause or message)[:200]}.",
        remedy="Send one, with a Host; by https:// only if the service has a certificate.",
    )
