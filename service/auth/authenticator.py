"""Finds out who sent a request, by its bearer token or by its session cookie."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from service.auth.attempts import FailedAttempts
from service.auth.callers import LOCAL, Caller
from service.auth.sessions import SessionStore
from service.auth.tokens import Token, TokenStore
from service.database import Database
from service.errors import RequestError

__all__ = ["COOKIE", "Authenticator", "Credentials"]

COOKIE = "mics_session"

_CHECKED_AGAIN_S = 5.0

_ASKED_AGAIN_S = 0.25
"""How long a service without tokens believes that there still is none: asking takes a thread."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request brings to say who sent it; neither, if both are none."""

    bearer: str | None
    session: str | None

    @property
    def are_given(self) -> bool:
        """Whether there are any."""
        return self.bearer is not None or self.session is not None

    @classmethod
    def of(cls, headers: Headers) -> Credentials:
        """Read them from a request's headers; the header of programs goes before the cookie."""
        scheme, _, value = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return cls(value.strip(), None)
        return cls(None, cookie_parser(headers.get("cookie", "")).get(COOKIE))


class Authenticator:
    """Decides who sends each request.

    Args:
        database: Where tokens and sessions are kept.
        always: Whether a token is needed even though none was made, as on a network.
        session_s: How long a session lasts.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        database: Database,
        *,
        always: bool,
        session_s: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._tokens = TokenStore(database)
        self._sessions = SessionStore(database, session_s)
        self._failures = FailedAttempts(clock=clock)
        self._clock = clock
        self._needs_token = always
        self._asked = -math.inf
        self._checked: dict[Credentials, tuple[float, bool]] = {}

    async def needs_token(self) -> bool:
        """Return whether requests need a token: soon after the first was ever made, for good."""
        now = self._clock()
        if not self._needs_token and now - self._asked >= _ASKED_AGAIN_S:
            self._needs_token = await asyncio.to_thread(self._tokens.any)
            self._asked = now
        return self._needs_token

    async def caller_of(self, credentials: Credentials, address: str) -> Caller:
        """Return who sent a request with these credentials.

        Raises:
            RequestError: A token is needed and none is given, or what is given is not valid.
        """
        if credentials.are_given:
            token = await asyncio.to_thread(self._verify, credentials)
            if token is not None:
                return token.caller
        if not await self.needs_token():
            return LOCAL
        if not credentials.are_given:
            raise RequestError(
                401,
                "This service needs a token, and the request has none.",
                remedy="Send `Authorization: Bearer TOKEN`; the command line and the Python client"
                " take it from MICS_TOKEN. `mics token create` makes one.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        # Valid tokens are never made to wait here: the secret cannot be guessed, and several
        # callers may share an address (a proxy, `ssh -L`).
        self._require_patience(address)
        self._failures.note(address)
        raise _not_valid("session" if credentials.bearer is None else "token")

    async def log_in(self, plain: str, address: str) -> tuple[Caller, str]:
        """Open a browser session for the bearer of a token.

        Returns:
            Who it is, and the session's id for the cookie.

        Raises:
            RequestError: The token is not valid, or this address has failed too often.
        """
        self._require_patience(address)
        token = await asyncio.to_thread(self._tokens.verify, plain)
        if token is None:
            self._failures.note(address)
            raise _not_valid("token")
        return token.caller, await asyncio.to_thread(self._sessions.open, token)

    async def log_out(self, session_id: str) -> None:
        """End a session."""
        await asyncio.to_thread(self._sessions.close, session_id)

    async def is_still_valid(self, credentials: Credentials) -> bool:
        """Return whether a stream that these credentials opened may go on.

        Asks the database once in a few seconds for all streams of one caller together.
        """
        now = self._clock()
        checked, is_valid = self._checked.get(credentials, (-math.inf, True))
        if now - checked >= _CHECKED_AGAIN_S:
            self._checked[credentials] = now, is_valid  # the others do not ask meanwhile
            is_valid = not await self.needs_token()
            if not is_valid and credentials.are_given:
                is_valid = await asyncio.to_thread(self._verify, credentials) is not None
            self._checked = {
                key: entry
                for key, entry in self._checked.items()
                if now - entry[0] < 2 * _CHECKED_AGAIN_S
            }
            self._checked[credentials] = now, is_valid
        return is_valid

    def _verify(self, credentials: Credentials) -> Token | None:
        if credentials.bearer is not None:
            return self._tokens.verify(credentials.bearer)
        if credentials.session is not None:
            return self._sessions.verify(credentials.session)
        return None

    def _require_patience(self, address: str) -> None:
        if wait_s := math.ceil(self._failures.wait_s(address)):
            raise RequestError(
                429,
                f"Too many tokens from {address} were not valid.",
                remedy=f"Try again in {wait_s} s, with a token that `mics token list` shows.",
                code="too_many_attempts",
                headers={"Retry-After": str(wait_s)},
            )


def _not_valid(what: str) -> RequestError:
    remedy = "Log in again." if what == "session" else "Ask an administrator for another."
    return RequestError(
        401,
        f"The {what} is unknown, over or revoked.",
        remedy=remedy,
        code=f"{what}_invalid",
        headers={"WWW-Authenticate": "Bearer"},
    )
