"""The tokens of the service: made, listed, revoked and recognised.

A token is `mics_ID_SECRET`. The id finds its row; of the secret only a SHA-256 is stored. A slow
password hash such as Argon2 would add nothing: it protects guessable secrets, and this one has 256
random bits, so that whoever reads the table can try neither all secrets nor the likely ones. A fast
hash also keeps the cost of a request with a wrong token constant and small.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from sqlalchemy import insert, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from mics_core.errors import Problem, SpecificationError
from service.auth.callers import Caller, Role
from service.database import Database
from service.tables import tokens

__all__ = ["Token", "TokenStore", "digest_of", "token_of_row"]

_FORM = re.compile(r"mics_([0-9a-f]{8})_([A-Za-z0-9_-]{1,100})")

_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; never its secret."""

    token_id: str
    name: str
    owner: str
    role: Role
    created: float
    revoked: float | None

    @property
    def caller(self) -> Caller:
        """Who sends it."""
        return Caller(self.owner, self.role)


class TokenStore:
    """The tokens in one database. Its functions block.

    Args:
        database: Its tables exist.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self._database = database
        self._clock = clock

    def create(self, name: str, role: Role, owner: str | None = None) -> str:
        """Make a token.

        Args:
            name: What it is for; no other valid token has the same.
            role: What it allows.
            owner: Whose jobs it submits and controls; the default is `name`.

        Returns:
            The token itself, which cannot be had again.

        Raises:
            SpecificationError: The name is taken.
        """
        token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        row = {
            "token_id": token_id,
            "name": name,
            "owner": owner or name,
            "role": role.value,
            "digest": digest_of(secret),
            "created": self._clock(),
        }
        try:
            with self._database.write() as connection:
                connection.execute(insert(tokens).values(**row))
        except IntegrityError:
            raise _name_taken(name) from None
        return f"mics_{token_id}_{secret}"

    def all(self) -> list[Token]:
        """Return all tokens, revoked ones too, oldest first."""
        query = select(tokens).order_by(tokens.c.created, tokens.c.token_id)
        with self._database.read() as connection:
            return [token_of_row(row) for row in connection.execute(query).mappings()]

    def revoke(self, name: str) -> Token:
        """End the token that has this name or id, and every session that it opened.

        Raises:
            SpecificationError: No valid token has this name or id.
        """
        chosen = (tokens.c.revoked.is_(None)) & (
            (tokens.c.name == name) | (tokens.c.token_id == name)
        )
        now = self._clock()
        with self._database.write() as connection:
            row = connection.execute(select(tokens).where(chosen)).mappings().first()
            if row is None:
                raise _not_there(name)
            # The row stays: a service whose last token was revoked must not open to everybody.
            connection.execute(
                update(tokens).where(tokens.c.token_id == row["token_id"]).values(revoked=now)
            )
        return replace(token_of_row(row), revoked=now)

    def any(self) -> bool:
        """Return whether a token was ever made."""
        with self._database.read() as connection:
            return connection.execute(select(tokens.c.token_id).limit(1)).first() is not None

    def verify(self, plain: str) -> Token | None:
        """Return the token that `plain` is; none if it is unknown, wrong or revoked.

        The same work is done whatever is wrong, and the comparison takes the same time wherever two
        hashes differ: neither tells somebody who guesses how close they came.
        """
        form = _FORM.fullmatch(plain)
        token_id, secret = form.groups() if form else ("", plain)
        query = select(tokens).where(tokens.c.token_id == token_id)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        stored = _NO_DIGEST if row is None else str(row["digest"])
        is_same = hmac.compare_digest(stored, digest_of(secret))
        if row is None or not is_same or row["revoked"] is not None:
            return None
        return token_of_row(row)


def digest_of(secret: str) -> str:
    """Return the hash under which a random secret is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def token_of_row(row: RowMapping) -> Token:
    """Return the token of a row of its table, or of one that has its columns among others."""
    values = {field.name: row[field.name] for field in fields(Token)}
    return Token(**values | {"role": Role(row["role"])})


def _name_taken(name: str) -> SpecificationError:
    return SpecificationError(
        [
            Problem(
                field="name",
                value=repr(name),
                rule="a valid token has this name.",
                remedy="Choose another, or revoke that one first.",
            )
        ]
    )


def _not_there(name: str) -> SpecificationError:
    return SpecificationError(
        [
            Problem(
                field="name",
                value=repr(name[:200]),
                rule="no valid token has this name or id.",
                remedy="`mics token list` shows them all.",
            )
        ]
    )
