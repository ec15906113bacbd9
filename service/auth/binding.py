"""Where the service may listen."""

from __future__ import annotations

import ipaddress

from mics_core.errors import Problem, SpecificationError
from service.auth.tokens import TokenStore
from service.database import Database

__all__ = ["is_loopback", "require_token_beyond_loopback"]


def is_loopback(host: str) -> bool:
    """Return whether `host` is an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_token_beyond_loopback(host: str, database: Database) -> None:
    """Refuse to be reached by other machines as long as there is no token.

    Raises:
        SpecificationError: `host` is no loopback address, and no token was ever made.
    """
    if is_loopback(host) or TokenStore(database).any():
        return
    raise SpecificationError(
        [
            Problem(
                field="host",
                value=repr(host),
                rule="without a token the service listens on this machine only, since everybody"
                " who reaches it could start code.",
                remedy="Create a token first, with `mics token create --name NAME --role admin`;"
                " or listen on 127.0.0.1, and reach it from elsewhere with `ssh -L`.",
            )
        ]
    )
