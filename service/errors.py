"""Turns every error into the one form that the API answers with.

Whatever goes wrong, a client reads the same body: a stable code, a sentence with the value and the
rule, the field if there is one, and the remedy. Stack traces go to the log, never into an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPMethod
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Mount

from mics_core.errors import (
    ClusterError,
    DataError,
    JobConflictError,
    JobNotFoundError,
    MicsError,
    SpecificationError,
)
from service.problems import problem_of
from service.redaction import without_paths, without_tokens
from service.schemas import ErrorBody, ErrorDetail

__all__ = [
    "DATABASE_ERRORS",
    "ERROR_ANSWERS",
    "RequestError",
    "database_error_response",
    "error_response",
    "install_error_handlers",
]

_LOG = logging.getLogger(__name__)

DATABASE_ERRORS = (OperationalError, InterfaceError, PoolTimeoutError)
"""What SQLAlchemy raises when the database does not answer."""

_STATUS_BY_ERROR: tuple[tuple[type[MicsError], int], ...] = (
    (SpecificationError, 422),
    (DataError, 422),
    (JobNotFoundError, 404),
    (JobConflictError, 409),
    (ClusterError, 503),
)

_CODES = {
    400: "bad_request",
    401: "token_required",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_too_slow",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    503: "service_busy",
}

_OF_FILES = (HTTPMethod.GET, HTTPMethod.HEAD)
_REMEDIES = {
    404: "The paths are listed in /docs.",
    405: "The methods of each path are listed in /docs.",
    409: "Look at the job's state, and try again when it allows this.",
    422: "Send JSON in UTF-8; /docs describes each body.",
    503: "Try again in a few seconds; /readyz says what does not answer.",
}
"""What to do where an error does not say it itself."""

_RULES = {
    404: "there is no such path",
    405: "this path has no such method",
}
"""What the framework says only by the name of the status."""

_ANY_REMEDY = "Compare the request with /docs."
_SERVER_REMEDY = "The log of the service has the details."

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorBody, "description": "A token is needed, or the one given is not valid."},
    403: {"model": ErrorBody, "description": "The caller's role or ownership does not allow it."},
    404: {"model": ErrorBody, "description": "No job has this id."},
    409: {"model": ErrorBody, "description": "The state of the job does not allow it."},
    422: {"model": ErrorBody, "description": "The request breaks the rules that it names."},
    429: {"model": ErrorBody, "description": "A limit that the message names is reached."},
    503: {"model": ErrorBody, "description": "The Ray cluster or the database does not answer."},
}
"""Documentation of the error answers, for the routes to choose from."""


class RequestError(MicsError):
    """A request that is refused whatever it asks for: its size, its origin, its caller, a limit.

    Args:
        status: Status of the answer.
        message: The value and the rule, in one sentence.
        remedy: What the caller can do about it.
        code: Stable code; the default is that of the status.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        remedy: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message, remedy=remedy)
        self.status = status
        self.code = code or _CODES[status]
        self.headers = dict(headers or {})


def install_error_handlers(app: FastAPI) -> None:
    """Have `app` answer every error in the one form."""
    app.add_exception_handler(MicsError, _on_mics_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    for kind in DATABASE_ERRORS:
        app.add_exception_handler(kind, _on_database_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def error_response(error: MicsError) -> Response:
    """Return the answer that stands for `error`."""
    headers: dict[str, str] = {}
    message = error.message
    if isinstance(error, RequestError):
        status, headers = error.status, error.headers
    else:
        status = next((code for kind, code in _STATUS_BY_ERROR if isinstance(error, kind)), 500)
    if isinstance(error, ClusterError):
        # It quotes Ray, which names files of its own machine.
        message = without_paths(message)
    if status == 503:
        headers = {"Retry-After": "5"} | headers
    return _answer(status, ErrorDetail.of(error, _remedy_for(status), message), headers)


async def _on_mics_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, MicsError)
    return error_response(error)


async def _on_invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [problem_of(detail) for detail in error.errors()]
    detail = ErrorDetail(
        code=_CODES[422],
        message="\n".join(f"{each.field}: {each.value}: {each.rule}" for each in problems),
        field=problems[0].field,
        remedy=problems[0].remedy,
        problems=problems,
    )
    return _answer(422, detail)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 400:  # what the framework says of a body that is no text at all
        status = 422
    detail = ErrorDetail(
        code=_CODES.get(status, f"http_{status}"),
        message=f"{request.method} {request.url.path[:200]}: {_RULES.get(status, error.detail)}.",
        remedy=_remedy_for(status),
    )
    headers = dict(error.headers or {})
    if status == 405:
        headers["Allow"] = _allowed_methods(request)
    return _answer(status, detail, headers)


def _allowed_methods(request: Request) -> str:
    """Return all methods of the path: the framework names those of its first route alone."""
    asked = {key: request.scope[key] for key in ("type", "path", "root_path", "headers")}
    asked["root_path"] = request.scope.get("app_root_path", asked["root_path"])  # not a mount's

    def has(route: BaseRoute, method: HTTPMethod) -> bool:
        if isinstance(route, Mount) and method not in _OF_FILES:
            return False  # it matches whatever it is asked
        return route.matches({**asked, "method": method})[0] is Match.FULL

    routes = request.app.routes
    return ", ".join(method for method in HTTPMethod if any(has(route, method) for route in routes))


def _remedy_for(status: int) -> str:
    """Return what to do about an error of which no more is known than its status."""
    return _REMEDIES.get(status) or (_SERVER_REMEDY if status >= 500 else _ANY_REMEDY)


def database_error_response(method: str, path: str, error: Exception) -> Response:
    """Return the answer to a request for which the database could not be asked; log why."""
    _LOG.error("%s %s failed", method, path, exc_info=error)
    detail = ErrorDetail(
        code="database_unavailable",
        message="The service's database does not answer.",
        remedy="Try again; the log of the service has the details.",
    )
    return _answer(503, detail, {"Retry-After": "5"})


async def _on_database_error(request: Request, error: Exception) -> Response:
    return database_error_response(request.method, request.url.path, error)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = ErrorDetail(
        code="internal_error",
        message="The service failed unexpectedly.",
        remedy=_SERVER_REMEDY,
    )
    return _answer(500, detail)


def _answer(status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None) -> Response:
    # Messages quote what was sent, and people send tokens to the wrong place.
    body = without_tokens(ErrorBody(error=detail).model_dump_json())
    return Response(body, status, headers, media_type="application/json")
