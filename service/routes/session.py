"""Routes by which a browser logs in and out, and a program asks who it is."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from service.auth.authenticator import COOKIE
from service.auth.dependencies import CallerOf
from service.errors import ERROR_ANSWERS
from service.routes.state import ServicesOf
from service.schemas import LoginRequest, SessionInfo

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/session", tags=["session"])


@router.get("", summary="Show who I am")
async def show_session(caller: CallerOf, services: ServicesOf) -> SessionInfo:
    """Say who the caller is, by its token or its session.

    Answers 401 where a token is needed: then the page shows its login.
    """
    needs_token = await services.authenticator.needs_token()
    return SessionInfo(name=caller.name, role=caller.role, requires_token=needs_token)


@router.post(
    "",
    summary="Log in",
    responses={401: ERROR_ANSWERS[401], 422: ERROR_ANSWERS[422], 429: ERROR_ANSWERS[429]},
)
async def log_in(
    body: Annotated[LoginRequest, Body()],
    request: Request,
    response: Response,
    services: ServicesOf,
) -> SessionInfo:
    """Trade a token for a session cookie, which no script of the page can read."""
    address = request.client.host if request.client else ""
    caller, session_id = await services.authenticator.log_in(body.token.get_secret_value(), address)
    response.set_cookie(
        COOKIE,
        session_id,
        max_age=math.ceil(services.settings.session_s),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return SessionInfo(name=caller.name, role=caller.role, requires_token=True)


@router.delete("", status_code=204, summary="Log out")
async def log_out(request: Request, response: Response, services: ServicesOf) -> None:
    """End the session, and have the browser forget its cookie."""
    if session_id := request.cookies.get(COOKIE):
        await services.authenticator.log_out(session_id)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
