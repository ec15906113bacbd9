"""Browser sessions: a random id in a cookie, its hash here beside the token that opened it.

Kept in the database and not in a signed cookie, so that logging out and revoking a token end a
session at once, in every service on the database, and a restart ends none.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from sqlalchemy import delete, insert, select

from service.auth.tokens import Token, digest_of, token_of_row
from service.database import Database
from service.tables import sessions, tokens

__all__ = ["SessionStore"]

_MOST_OF_A_TOKEN = 50


class SessionStore:
    """The sessions in one database. Its functions block.

    Args:
        database: Its tables exist.
        lifetime_s: How long a session lasts.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, database: Database, lifetime_s: float, clock: Callable[[], float] = time.time
    ):
        self._database = database
        self._lifetime_s = lifetime_s
        self._clock = clock

    def open(self, token: Token) -> str:
        """Begin a session for the bearer of `token`; returns its id, of which the hash is kept."""
        session_id, now = secrets.token_urlsafe(32), self._clock()
        of_token = sessions.c.token_id == token.token_id
        kept = (
            select(sessions.c.digest)
            .where(of_token)
            .order_by(sessions.c.expires.desc())
            .limit(_MOST_OF_A_TOKEN - 1)
        )
        with self._database.write() as connection:
            newest = list(connection.execute(kept).scalars())
            connection.execute(delete(sessions).where(sessions.c.expires <= now))
            connection.execute(delete(sessions).where(of_token, sessions.c.digest.not_in(newest)))
            connection.execute(
                insert(sessions).values(
                    digest=digest_of(session_id),
                    token_id=token.token_id,
                    created=now,
                    expires=now + self._lifetime_s,
                )
            )
        return session_id

    def verify(self, session_id: str) -> Token | None:
        """Return the token behind a session; none if it is unknown, over, or the token is revoked.

        Looked up by hash: how long a database takes to miss says nothing about an id whose hash an
        attacker cannot choose.
        """
        query = (
            select(tokens)
            .join(sessions, sessions.c.token_id == tokens.c.token_id)
            .where(
                sessions.c.digest == digest_of(session_id),
                sessions.c.expires > self._clock(),
                tokens.c.revoked.is_(None),
            )
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else token_of_row(row)

    def close(self, session_id: str) -> None:
        """End a session; one that is over already is no error."""
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == digest_of(session_id)))
