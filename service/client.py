"""A synchronous client of the REST API, for the command line and for scripts.

Every refusal of the service comes back as the `MicsError` that the service raised, with its code,
field and remedy. The event stream is followed across cut connections: each event carries its
sequence number, so a new connection goes on exactly where the last one ended.

MicsError
├── ServiceError               any other answer; an unknown code of the API is kept as it is
└── ServiceUnreachableError    nothing answers at the address
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from mics_core.errors import MicsError, Problem, SpecificationError
from mics_core.spec.cluster import ClusterSpec
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobEvent, StateEvent
from service.schemas import ErrorBody, ErrorDetail, JobDetail, JobList, PlanAnswer, Throughput

__all__ = [
    "DEFAULT_URL",
    "MicsClient",
    "ServiceError",
    "ServiceUnreachableError",
]

DEFAULT_URL = "http://127.0.0.1:8600"

_Body = TypeVar("_Body", bound=BaseModel)


class ServiceError(MicsError):
    """The service refused or failed with an answer that no other error of the tree stands for."""

    code = "service_error"


class ServiceUnreachableError(MicsError):
    """Nothing answers at the address of the service."""

    code = "service_unreachable"


class MicsClient:
    """Talks to one service.

    Args:
        url: Address of the service, without the API's path.
        timeout_s: Longest wait for an answer; for the event stream, the longest silence. The
            service sends a comment more often than that, so silence means a lost connection.
        retry_s: Pause before the event stream is asked for again.
        max_retries: Connections without a single new event after which the stream is given up.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 1.0,
        max_retries: int = 10,
    ):
        self.url = url.rstrip("/")
        self._retry_s = retry_s
        self._max_retries = max_retries
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, spec: JobSpec) -> JobDetail:
        """Submit a job.

        Raises:
            SpecificationError: The service finds a broken rule; nothing was started.
        """
        return self._call(JobDetail, "POST", "/api/v1/jobs", spec.model_dump(mode="json"))

    def validate(self, spec: JobSpec) -> JobSpec:
        """Have the service check a specification against its files and its cluster.

        Returns:
            The specification with every default filled in.

        Raises:
            SpecificationError: The service finds a broken rule.
        """
        return self._call(JobSpec, "POST", "/api/v1/jobs/validate", spec.model_dump(mode="json"))

    def plan(
        self, spec: JobSpec, cluster: str | ClusterSpec | None = None, nodes: int | None = None
    ) -> PlanAnswer:
        """Have the service choose a layout by predicted speed; nothing is started.

        Args:
            spec: The job.
            cluster: The name of a known cluster, or what a cluster file holds; by default what
                the job names.
            nodes: Nodes of the cluster, if not as many as it says.

        Raises:
            SpecificationError: Nothing fits, or the cluster or the model is not known.
        """
        known = cluster.model_dump(mode="json") if isinstance(cluster, ClusterSpec) else cluster
        body = {"job": spec.model_dump(mode="json"), "cluster": known, "nodes": nodes}
        return self._call(PlanAnswer, "POST", "/api/v1/plans", body)

    def jobs(self) -> JobList:
        """Return the jobs, newest first."""
        return self._call(JobList, "GET", "/api/v1/jobs")

    def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: No job has this id.
        """
        return self._call(JobDetail, "GET", f"/api/v1/jobs/{_quoted(job_id)}")

    def scale(self, job_id: str, groups: int) -> JobDetail:
        """Ask for another number of partition groups.

        Raises:
            ScaleError: The number is outside the job's bounds.
        """
        path = f"/api/v1/jobs/{_quoted(job_id)}/scale"
        return self._call(JobDetail, "POST", path, {"groups": groups})

    def cancel(self, job_id: str) -> JobDetail:
        """Stop a job at its next step boundary.

        Raises:
            JobConflictError: The job has ended already.
        """
        return self._call(JobDetail, "POST", f"/api/v1/jobs/{_quoted(job_id)}/cancel")

    def throughput(self, job_id: str, *, limit: int = 100) -> Throughput:
        """Return the newest committed steps, at most `limit` of them, oldest first."""
        path = f"/api/v1/jobs/{_quoted(job_id)}/throughput"
        return self._call(Throughput, "GET", path, params={"limit": limit})

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, interval_s: float = 1.0
    ) -> JobDetail:
        """Wait for the end of a job.

        Raises:
            TimeoutError: The job has not ended after `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (detail := self.job(job_id)).state.is_final:
            if deadline is not None and time.monotonic() + interval_s > deadline:
                raise TimeoutError(
                    f"job {job_id} is {detail.state} at step {detail.step} of {detail.steps} after"
                    f" {timeout_s:g} s. Raise timeout_s, or leave it out to wait for the end."
                )
            time.sleep(interval_s)
        return detail

    def events(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
        """Follow the events of a job: history after `after` first, then live, up to the end.

        A cut connection is opened again; no event comes twice and none is left out.

        Args:
            job_id: The job.
            after: Sequence number of the last event already known.

        Raises:
            JobNotFoundError: No job has this id.
            ServiceUnreachableError: The service stays away for `max_retries` attempts.
        """
        fruitless = 0
        while True:
            known = after
            try:
                for event in self._stream(job_id, after):
                    if event.sequence <= after:
                        continue
                    after, fruitless = event.sequence, 0
                    yield event
                    if isinstance(event, StateEvent) and event.state.is_final:
                        return
                # Ended without a final event: cut by a proxy, or the last event was known before.
                if after == known and self.job(job_id).state.is_final:
                    return
            except ServiceUnreachableError:
                if fruitless >= self._max_retries:
                    raise
            if after == known:
                fruitless += 1
            time.sleep(self._retry_s)

    def _stream(self, job_id: str, after: int) -> Iterator[JobEvent]:
        path = f"/api/v1/jobs/{_quoted(job_id)}/events"
        headers = {"Accept": "text/event-stream"}
        if after:
            headers["Last-Event-ID"] = str(after)
        try:
            with self._http.stream("GET", path, params={"after": after}, headers=headers) as answer:
                if answer.is_server_error:
                    raise self._unreachable(f"it answers with status {answer.status_code}")
                if answer.is_error:
                    answer.read()
                    raise _error_of(answer)
                event_form = TypeAdapter[JobEvent](JobEvent)
                for data in _data_of_events(answer.iter_lines()):
                    yield _parsed_event(event_form, data)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _call(
        self,
        form: type[_Body],
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        params: dict[str, int] | None = None,
    ) -> _Body:
        answer = self._send(method, path, body, params)
        try:
            return form.model_validate_json(answer.content)
        except ValidationError:
            raise ServiceError(
                f"{method} {self.url}{path} answered with no {form.__name__}.",
                remedy="Check that the address is that of a mics service of this version.",
            ) from None

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        params: dict[str, int] | None = None,
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body, params=params)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise _error_of(answer)
        return answer

    def _unreachable(self, cause: httpx.TransportError | str) -> ServiceUnreachableError:
        return ServiceUnreachableError(
            f"No mics service answers at {self.url} ({cause or type(cause).__name__}).",
            remedy="Start one with `mics serve`, or name its address with --url or MICS_URL.",
        )


def _quoted(job_id: str) -> str:
    return quote(job_id, safe="")


def _data_of_events(lines: Iterable[str]) -> Iterator[str]:
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


def _parsed_event(event_form: TypeAdapter[JobEvent], data: str) -> JobEvent:
    try:
        return event_form.validate_json(data)
    except ValidationError:
        raise ServiceError(
            f"The event stream holds {data[:80]!r}, which is no event of a job.",
            remedy="Use the command line of the same version as the service.",
        ) from None


def _error_of(answer: httpx.Response) -> MicsError:
    """Return the error that the body of a refused request stands for."""
    try:
        detail = ErrorBody.model_validate_json(answer.content).error
    except ValidationError:
        return ServiceError(
            f"{answer.request.url} answered with status {answer.status_code}"
            f" {answer.reason_phrase} and no explanation.",
            remedy="Check that the address is that of a mics service, and look at its log.",
        )
    kind = _kinds_by_code().get(detail.code, ServiceError)
    if issubclass(kind, SpecificationError):
        return kind(_problems_of(detail))
    error = kind(detail.message, remedy=detail.remedy, field=detail.field)
    error.code = detail.code
    return error


def _problems_of(detail: ErrorDetail) -> list[Problem]:
    if detail.problems:
        return [Problem(**problem.model_dump()) for problem in detail.problems]
    return [Problem(detail.field or "(job)", "it", detail.message, detail.remedy or "")]


def _kinds_by_code() -> dict[str, type[MicsError]]:
    """Return every error of the tree by its code."""
    kinds, waiting = {}, [MicsError]
    while waiting:
        kind = waiting.pop()
        kinds[kind.code] = kind
        waiting += kind.__subclasses__()
    return kinds
