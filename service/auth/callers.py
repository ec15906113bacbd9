"""Roles, and what they allow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["LOCAL", "Caller", "Role"]


class Role(StrEnum):
    """What a token allows. Each role may do what those before it may."""

    VIEWER = "viewer"
    """Reads everything."""
    USER = "user"
    """Submits jobs, and controls its own."""
    ADMIN = "admin"
    """Controls every job."""

    def covers(self, other: Role) -> bool:
        """Return whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    name: str | None
    """The token's owner, who also owns the jobs that it submits; none where no token is needed."""
    role: Role

    def may_control(self, owner: str | None) -> bool:
        """Return whether this caller may control a job of `owner`.

        Args:
            owner: None for a job that was found on the cluster, or that nobody in particular
                submitted; administrators alone control it.
        """
        is_own = owner is not None and owner == self.name
        return self.role is Role.ADMIN or (self.role is Role.USER and is_own)


LOCAL = Caller(None, Role.ADMIN)
"""Whoever reaches a service that has no tokens, and so listens on its own machine alone."""
