"""HTTP below the client: requests, answers as models, refusals as errors, streams of lines.

MicsError
├── ServiceError               any other answer; an unknown code of the API is kept as it is
│   ├── TokenError             a token is needed, or the one given is not valid
│   ├── ForbiddenError         the token's role does not allow it
│   └── LimitError             a limit of the service is reached
└── ServiceUnreachableError    nothing answers at the address
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from mics_core.errors import MicsError, Problem, SpecificationError
from service.schemas import ErrorBody, ErrorDetail

__all__ = [
    "ForbiddenError",
    "LimitError",
    "Parameters",
    "ServiceError",
    "ServiceUnreachableError",
    "TokenError",
    "Transport",
    "data_of_events",
]

_Body = TypeVar("_Body", bound=BaseModel)

Parameters = Mapping[str, str | int | Sequence[str] | None]
"""Query parameters; a sequence repeats its name, and what is none is left out."""


class ServiceError(MicsError):
    """The service refused or failed with an answer that no other error of the tree stands for."""

    code = "service_error"


class TokenError(ServiceError):
    """The service needs a token, or does not know the one given."""

    code = "token_required"


class ForbiddenError(ServiceError):
    """Who the token belongs to may not do this."""

    code = "forbidden"


class LimitError(ServiceError):
    """The service takes no more of this now; it says which limit is reached."""

    code = "too_many_requests"


class ServiceUnreachableError(MicsError):
    """Nothing answers at the address of the service."""

    code = "service_unreachable"


_KINDS_BY_STATUS: dict[int, type[ServiceError]] = {
    401: TokenError,
    403: ForbiddenError,
    429: LimitError,
}


class Transport:
    """One service over HTTP.

    Args:
        url: Its address, without the API's path.
        token: Bearer token; none sends none.
        timeout_s: Longest wait for an answer, or silence of a stream.
    """

    def __init__(self, url: str, token: str | None, timeout_s: float):
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(
        self,
        form: type[_Body],
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        parameters: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Body:
        """Send a request and read its answer as `form`.

        Raises:
            MicsError: The service refuses it, fails, is not there, or answers otherwise.
        """
        answer = self.send(method, path, body=body, parameters=parameters, headers=headers)
        try:
            return form.model_validate_json(answer.content)
        except ValidationError:
            raise ServiceError(
                f"{method} {self.url}{path} answered with no {form.__name__}.",
                remedy="Check that the address is that of a mics service of this version.",
            ) from None

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        parameters: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a request.

        Raises:
            MicsError: The service refuses it, fails, or is not there.
        """
        try:
            answer = self._http.request(
                method, path, json=body, params=_query(parameters), headers=headers
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise _error_of(answer)
        return answer

    def lines(
        self,
        path: str,
        *,
        parameters: Parameters | None = None,
        headers: Mapping[str, str] | None = None,
        may_be_silent: bool = False,
    ) -> Iterator[str]:
        """Yield the lines of an answer as they come.

        Args:
            path: What is asked for.
            parameters: Query parameters.
            headers: Further headers.
            may_be_silent: Whether there may be no line for any time.

        Raises:
            ServiceUnreachableError: The connection is lost, or the service fails.
            MicsError: The service refuses the request.
        """
        query, limits = _query(parameters), self._http.timeout
        if may_be_silent:
            limits = httpx.Timeout(limits.connect, read=None)
        try:
            with self._http.stream(
                "GET", path, params=query, headers=headers, timeout=limits
            ) as answer:
                if answer.is_server_error:
                    raise self._unreachable(f"it answers with status {answer.status_code}")
                if answer.is_error:
                    answer.read()
                    raise _error_of(answer)
                yield from answer.iter_lines()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, cause: httpx.TransportError | str) -> ServiceUnreachableError:
        return ServiceUnreachableError(
            f"No mics service answers at {self.url} ({cause or type(cause).__name__}).",
            remedy="Start one with `mics serve`, or name its address with --url or MICS_URL.",
        )


def data_of_events(lines: Iterable[str]) -> Iterator[str]:
    """Yield the data of each server-sent event; an event that a cut leaves unfinished is dropped.

    The kind and the sequence number are inside the data as well, so that the fields `event` and
    `id` need no reading.
    """
    data: list[str] = []
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
        elif data:
            yield "\n".join(data)
            data = []


def _query(parameters: Parameters | None) -> list[tuple[str, str | int | float | bool | None]]:
    pairs: list[tuple[str, str | int | float | bool | None]] = []
    for name, value in (parameters or {}).items():
        if value is not None:
            values = [value] if isinstance(value, str | int) else value
            pairs += [(name, each) for each in values]
    return pairs


def _error_of(answer: httpx.Response) -> MicsError:
    """Return the error that the body of a refused request stands for."""
    general = _KINDS_BY_STATUS.get(answer.status_code, ServiceError)
    try:
        detail = ErrorBody.model_validate_json(answer.content).error
    except ValidationError:
        return general(
            f"{answer.request.url.copy_with(query=None)} answered with status"
            f" {answer.status_code} {answer.reason_phrase} and no explanation.",
            remedy="Check that the address is that of a mics service, and look at its log.",
        )
    kind = _kinds_by_code().get(detail.code, general)
    if issubclass(kind, SpecificationError):
        return kind(_problems_of(detail))
    error = kind(detail.message, remedy=detail.remedy, field=detail.field)
    error.code = detail.code
    return error


def _problems_of(detail: ErrorDetail) -> list[Problem]:
    if detail.problems:
        return [Problem(**problem.model_dump()) for problem in detail.problems]
    return [Problem(detail.field or "(job)", "it", detail.message, detail.remedy)]


def _kinds_by_code() -> dict[str, type[MicsError]]:
    """Return every error of the tree by its code."""
    kinds, waiting = {}, [MicsError]
    while waiting:
        kind = waiting.pop()
        kinds[kind.code] = kind
        waiting += kind.__subclasses__()
    return kinds
