"""What every request and every answer must pass: host, origin, size, security headers.

The service starts user code, so a web page open in a user's browser must not reach it, whether by
that user's session or, where the service has no tokens, by being on the same machine. Three rules
stop it: the `Host` must be a name of the service (against DNS rebinding), a request that changes
something must not carry a foreign `Origin`, and bodies must declare a media type that a foreign
page cannot send without being asked first (see `service.bodies`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import RequestError, error_response

__all__ = ["BODY_S", "MAXIMUM_BODY_BYTES", "GuardMiddleware"]

MAXIMUM_BODY_BYTES = 256 * 1024
"""Largest accepted request body; specifications are a few kilobytes."""

BODY_S = 15.0
"""Longest pause in a body."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_PAGE_POLICY = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"

# The documentation's style sheet has its icons inside.
_DOCUMENTATION_POLICY = f"{_PAGE_POLICY}; img-src 'self' data:"


class GuardMiddleware:
    """Refuses requests that no client of this machine sends, and marks all answers as private.

    Args:
        app: The application behind it.
        allowed_hosts: Names by which requests may address the service, without ports.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]):
        self._app = app
        self._allowed_hosts = frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        body = _Body(receive)
        is_refused = False

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_security_headers(MutableHeaders(scope=message), scope["path"])
            await send(message)

        async def send_or_refuse(message: Message) -> None:
            # FastAPI takes whatever is raised while it reads a body for a body that cannot be
            # parsed, so that what the application says of it is not what was wrong.
            nonlocal is_refused
            if message["type"] == "http.response.start" and body.refusal is not None:
                is_refused = True
                await error_response(body.refusal)(scope, receive, send_with_headers)
            if not is_refused:
                await send_with_headers(message)

        headers = Headers(scope=scope)
        try:
            self._check(scope["method"], headers)
        except RequestError as error:
            await error_response(error)(scope, receive, send_with_headers)
            return
        await self._app(scope, body.receive, send_or_refuse)

    def _check(self, method: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if _name_of(host) not in self._allowed_hosts:
            raise RequestError(
                400,
                f"Host {host[:100]!r} is no name of this service.",
                remedy=f"Address it as {' or '.join(sorted(self._allowed_hosts))}.",
            )
        origin = headers.get("origin")
        if method not in _SAFE_METHODS and origin is not None and urlsplit(origin).netloc != host:
            raise RequestError(
                403,
                f"A page from {origin[:100]!r} must not change anything here.",
                remedy="Use the service's own page, the command line or the REST API directly.",
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= MAXIMUM_BODY_BYTES:
            return
        raise _too_large()


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class _Body:
    """Counts what arrives, since a chunked body declares no length; and does not wait for ever.

    Args:
        receive: What the server has of the request.
    """

    def __init__(self, receive: Receive):
        self._receive = receive
        self._received_bytes = 0
        self._is_over = False
        self.refusal: RequestError | None = None
        """Why it was read no further."""

    async def receive(self) -> Message:
        """Return the next piece.

        Raises:
            RequestError: It is too large, or too slow.
        """
        if self._is_over:  # what follows is the client's departure, for which one waits
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_S)
        except TimeoutError:
            self.refusal = RequestError(
                408,
                f"The body did not go on for {BODY_S:g} s.",
                remedy="Send it at once; try again.",
            )
            raise self.refusal from None
        self._is_over = not message.get("more_body", False)
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > MAXIMUM_BODY_BYTES:
            self.refusal = _too_large()
            raise self.refusal
        return message


def _too_large() -> RequestError:
    return RequestError(
        413,
        f"The body exceeds {MAXIMUM_BODY_BYTES} bytes.",
        remedy="Specifications are small: name files by their path instead of sending them.",
    )


def _add_security_headers(headers: MutableHeaders, path: str) -> None:
    is_documentation = path == "/docs"
    policy = _DOCUMENTATION_POLICY if is_documentation else _PAGE_POLICY
    headers.setdefault("Content-Security-Policy", policy)
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    # Every answer may change with the next one or the next version: ask again each time.
    headers.setdefault("Cache-Control", "no-cache")
