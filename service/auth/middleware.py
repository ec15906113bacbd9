"""Lets no request through without a caller, but for what everybody may see.

A middleware and not a dependency, so that a route, a mounted folder or the documentation is closed
unless it is named here. What a caller may do there is for `service.auth.dependencies`.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.authenticator import Authenticator, Credentials
from service.errors import (
    DATABASE_ERRORS,
    RequestError,
    database_error_response,
    error_response,
)

__all__ = ["AuthenticationMiddleware"]

_OPEN = frozenset(
    {
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        # To log in, and to drop a cookie that is valid no more.
        ("POST", "/api/v1/session"),
        ("DELETE", "/api/v1/session"),
    }
)

# The page's own files hold nothing of anybody's; without them nobody could log in.
_OPEN_FOLDER = "/static/"

_LOOK_S = 2.0


class AuthenticationMiddleware:
    """Puts the caller into each request's state as `caller`; answers 401 where there is none.

    On the open paths `caller` is none for somebody unknown.

    Args:
        app: The application behind it.
        authenticator: Knows the callers.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator):
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its caller, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        credentials = Credentials.of(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state["credentials"] = credentials
        if _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            address = scope["client"][0] if scope["client"] else ""
            state["caller"] = await self._authenticator.caller_of(credentials, address)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        except DATABASE_ERRORS as error:
            answer = database_error_response(scope["method"], scope["path"], error)
            await answer(scope, receive, send)
            return
        await self._pass_while_valid(credentials, scope, receive, send)

    async def _pass_while_valid(
        self, credentials: Credentials, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a request; a stream ends soon after its token or session does.

        A stream listens for its client's departure, and is told of one.
        """
        is_body_over = is_cut = is_answer_over = False

        async def receive_while_valid() -> Message:
            nonlocal is_body_over, is_cut
            if not is_body_over:
                message = await receive()
                is_body_over = not message.get("more_body", False)
                return message
            while True:
                try:
                    return await asyncio.wait_for(receive(), _LOOK_S)
                except TimeoutError:
                    if not await self._authenticator.is_still_valid(credentials):
                        is_cut = True
                        return {"type": "http.disconnect"}

        async def send_noting_the_end(message: Message) -> None:
            nonlocal is_answer_over
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                is_answer_over = True
            await send(message)

        await self._app(scope, receive_while_valid, send_noting_the_end)
        if is_cut and not is_answer_over:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _is_open(scope: Scope) -> bool:
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path: str = scope["path"]
    is_file = method == "GET" and path.startswith(_OPEN_FOLDER)
    return is_file or (method, path) in _OPEN
