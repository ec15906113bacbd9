"""Turns every error into the one form that the API answers with.

Whatever goes wrong, a client reads the same body: a stable code, a sentence with the value and the
rule, the field if there is one, and the remedy. Stack traces go to the log, never into an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mics_core.errors import (
    ClusterError,
    DataError,
    JobConflictError,
    JobNotFoundError,
    MicsError,
    SpecificationError,
)
from service.schemas import ErrorBody, ErrorDetail, ErrorProblem

__all__ = ["ERROR_ANSWERS", "RequestError", "error_response", "install_error_handlers"]

_LOG = logging.getLogger(__name__)

_STATUS_BY_ERROR: tuple[tuple[type[MicsError], int], ...] = (
    (SpecificationError, 422),
    (DataError, 422),
    (JobNotFoundError, 404),
    (JobConflictError, 409),
    (ClusterError, 503),
)

_CODES = {
    400: "bad_request",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
}

_REMEDIES = {
    404: "The paths are listed in /docs.",
    405: "The methods of each path are listed in /docs.",
}

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "No job has this id."},
    409: {"model": ErrorBody, "description": "The state of the job does not allow it."},
    422: {"model": ErrorBody, "description": "The request breaks the rules that it names."},
    503: {"model": ErrorBody, "description": "The Ray cluster cannot be reached."},
}
"""Documentation of the error answers, for the routes to choose from."""


class RequestError(MicsError):
    """A request that HTTP itself cannot accept: its media type, its size, its origin."""

    def __init__(self, status: int, message: str, *, remedy: str):
        super().__init__(message, remedy=remedy)
        self.status = status
        self.code = _CODES[status]


def install_error_handlers(app: FastAPI) -> None:
    """Have `app` answer every error in the one form."""
    app.add_exception_handler(MicsError, _on_mics_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


def error_response(error: MicsError) -> JSONResponse:
    """Return the answer that stands for `error`."""
    if isinstance(error, RequestError):
        status = error.status
    else:
        status = next((code for kind, code in _STATUS_BY_ERROR if isinstance(error, kind)), 500)
    problems = error.problems if isinstance(error, SpecificationError) else ()
    detail = ErrorDetail(
        code=error.code,
        message=error.message,
        field=error.field,
        remedy=error.remedy,
        problems=[ErrorProblem(**problem.as_dict()) for problem in problems],
    )
    return _answer(status, detail, {"Retry-After": "5"} if status == 503 else None)


async def _on_mics_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MicsError)
    return error_response(error)


async def _on_invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [_problem_of(detail) for detail in error.errors()]
    detail = ErrorDetail(
        code=_CODES[422],
        message="\n".join(f"{each.field}: {each.value}: {each.rule}" for each in problems),
        field=problems[0].field,
        remedy=problems[0].remedy,
        problems=problems,
    )
    return _answer(422, detail)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = error.status_code
    detail = ErrorDetail(
        code=_CODES.get(status, f"http_{status}"),
        message=f"{request.method} {request.url.path[:200]}: {error.detail}.",
        remedy=_REMEDIES.get(status),
    )
    return _answer(status, detail, error.headers)


async def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    detail = ErrorDetail(
        code="internal_error",
        message="The service failed unexpectedly.",
        remedy="The log of the service has the details.",
    )
    return _answer(500, detail)


def _answer(
    status: int, detail: ErrorDetail, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(ErrorBody(error=detail).model_dump(mode="json"), status, headers)


def _problem_of(detail: Mapping[str, Any]) -> ErrorProblem:
    # The first part says where the field is: body, query, path or header.
    names = [str(part) for part in detail["loc"][1:]] or [str(detail["loc"][0])]
    shown = repr(detail.get("input"))
    rule = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "json_invalid":
        names, rule = ["(body)"], f"it is no valid JSON ({detail['ctx']['error']})"
    return ErrorProblem(
        field=".".join(names),
        value=shown if len(shown) <= 80 else shown[:79] + "…",
        rule=rule + ".",
        remedy="Correct this field; /docs describes it.",
    )
