"""What routes ask of their callers.

`authorize` stands before every route of the application, so that one added later is covered: what
changes something needs the role `user`, and what changes a job needs control of that job.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, cast

from fastapi import Depends, Request

from service.auth.callers import LOCAL, Caller, Role
from service.errors import RequestError
from service.routes.state import ServicesOf

__all__ = ["CallerOf", "authorize"]

_READING_METHODS = ("GET", "HEAD", "OPTIONS")

# Planning is a question, whatever its method.
_QUESTIONS = ("/api/v1/plans",)

_SESSION = "/api/v1/session"


def caller_of(request: Request) -> Caller:
    """Return who sent a request, as the middleware found out."""
    return cast("Caller", getattr(request.state, "caller", LOCAL))


CallerOf = Annotated[Caller, Depends(caller_of)]
"""The caller, for routes that need the name or the role."""


async def authorize(request: Request, caller: CallerOf, services: ServicesOf) -> None:
    """Check that the caller may do what the request asks for.

    Raises:
        RequestError: The role does not suffice, or the job is somebody else's.
        JobNotFoundError: The job to change is not known.
    """
    path = request.url.path
    if request.method in _READING_METHODS or path in _QUESTIONS or path == _SESSION:
        return
    if not caller.role.covers(Role.USER):
        raise RequestError(
            403,
            f"{caller.name} has the role {caller.role.value}, which only reads.",
            remedy="Ask an administrator for a token with `--role user`.",
            code="role_insufficient",
        )
    job_id = request.path_params.get("job_id")
    if job_id is None or caller.role is Role.ADMIN:
        return
    owner = await asyncio.to_thread(services.store.owner_of, job_id)
    if not caller.may_control(owner):
        whose = f"belongs to {owner}" if owner is not None else "has no owner"
        raise RequestError(
            403,
            f"Job {job_id} {whose}; {caller.name} does not control it.",
            remedy="Ask its owner, or an administrator.",
            code="not_owner",
        )
