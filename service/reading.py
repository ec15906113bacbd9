"""The part of the client that reads: jobs, their events, logs and places, and the cluster.

The event stream is followed across cut connections: each event carries its sequence number, so a
new connection goes on exactly where the last one ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from mics_core.spec.status import JobEvent, JobState, StateEvent
from service.schemas import (
    CheckpointList,
    Cluster,
    EventList,
    Health,
    JobDetail,
    JobList,
    JobSummary,
    Placement,
    Throughput,
)
from service.transport import (
    Parameters,
    ServiceError,
    ServiceUnreachableError,
    Transport,
    data_of_events,
)

__all__ = ["DEFAULT_URL", "JOBS", "Reader", "path_of"]

DEFAULT_URL = "http://127.0.0.1:8600"

JOBS = "/api/v1/jobs"


class Reader:
    """What may be asked of a service: nothing here changes anything.

    Args:
        url: Address of the service, without the API's path; else `MICS_URL`, else this machine.
        token: Bearer token; else `MICS_TOKEN`, if that is set.
        timeout_s: Longest wait for an answer; for streams, the longest silence. The service sends
            a comment more often than that, so silence means a lost connection.
        retry_s: Pause before the event stream is asked for again.
        max_retries: Connections without a single new event after which the stream is given up.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 1.0,
        max_retries: int = 10,
    ):
        url = url or os.environ.get("MICS_URL") or DEFAULT_URL
        token = token or os.environ.get("MICS_TOKEN")
        self._retry_s = retry_s
        self._max_retries = max_retries
        self._transport = Transport(url, token, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._transport.url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def jobs(
        self,
        *,
        states: Iterable[JobState | str] = (),
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> JobList:
        """Return a page of the jobs, newest first.

        Args:
            states: Only jobs in one of these.
            owner: Only jobs of this owner.
            labels: Only jobs with all of these.
            limit: Most jobs of the page.
            cursor: `next_cursor` of the page before.
        """
        parameters: Parameters = {
            "state": [str(state) for state in states],
            "owner": owner,
            "label": [f"{key}:{value}" for key, value in (labels or {}).items()],
            "limit": limit,
            "cursor": cursor,
        }
        return self._transport.call(JobList, "GET", JOBS, parameters=parameters)

    def all_jobs(
        self,
        *,
        states: Iterable[JobState | str] = (),
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[JobSummary]:
        """Yield the jobs of all pages, newest first; the filters are those of `jobs`."""
        states, cursor = list(states), None
        while True:
            page = self.jobs(states=states, owner=owner, labels=labels, cursor=cursor)
            yield from page.jobs
            cursor = page.next_cursor
            if cursor is None:
                return

    def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: No job has this id.
        """
        return self._transport.call(JobDetail, "GET", path_of(job_id))

    def watch(self, job_id: str, *, after: int = 0) -> Iterator[JobEvent]:
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

    def events(
        self, job_id: str, *, after: int = 0, limit: int = 500, kinds: Iterable[str] = ()
    ) -> EventList:
        """Return the events that are there after `after`, in order; `watch` follows new ones.

        Args:
            job_id: The job.
            after: Sequence number of the last event already known.
            limit: Most events.
            kinds: Only events of these kinds.

        Raises:
            JobNotFoundError: No job has this id.
        """
        parameters: Parameters = {"after": after, "limit": limit, "kind": list(kinds)}
        return self._transport.call(
            EventList, "GET", path_of(job_id, "events/list"), parameters=parameters
        )

    def logs(
        self,
        job_id: str,
        *,
        tail: int = 1000,
        worker: str | None = None,
        follow: bool = False,
    ) -> Iterator[str]:
        """Yield the lines of a job's log as they come.

        Args:
            job_id: The job.
            tail: How many of the lines that are there come first.
            worker: `GROUP.RANK` of one worker; else the driver's and the supervisor's.
            follow: Whether to go on until the job ends.

        Raises:
            JobNotFoundError: No job has this id.
            ServiceUnreachableError: The connection is lost; lines have no numbers to go on from.
        """
        parameters: Parameters = {
            "tail": tail,
            "worker": worker,
            "follow": "true" if follow else None,
        }
        lines = self._transport.lines(
            path_of(job_id, "logs"), parameters=parameters, may_be_silent=follow
        )
        yield from lines

    def throughput(
        self,
        job_id: str,
        *,
        points: int = 500,
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> Throughput:
        """Return the throughput of a job, thinned to at most `points` records, oldest first.

        Raises:
            JobNotFoundError: No job has this id.
        """
        parameters: Parameters = {
            "points": points,
            "first_step": first_step,
            "last_step": last_step,
        }
        return self._transport.call(
            Throughput, "GET", path_of(job_id, "throughput"), parameters=parameters
        )

    def checkpoints(self, job_id: str) -> CheckpointList:
        """Return the checkpoints of a job.

        Raises:
            JobNotFoundError: No job has this id.
        """
        return self._transport.call(CheckpointList, "GET", path_of(job_id, "checkpoints"))

    def placement(self, job_id: str) -> Placement:
        """Return where every worker of a job runs.

        Raises:
            JobNotFoundError: No job has this id.
        """
        return self._transport.call(Placement, "GET", path_of(job_id, "placement"))

    def cluster(self) -> Cluster:
        """Return the nodes of the Ray cluster, and what waits for room.

        Raises:
            ClusterError: Ray cannot be reached.
        """
        return self._transport.call(Cluster, "GET", "/api/v1/cluster")

    def health(self) -> Health:
        """Return whether the service and its connection to Ray work."""
        return self._transport.call(Health, "GET", "/healthz")

    def _stream(self, job_id: str, after: int) -> Iterator[JobEvent]:
        headers = {"Accept": "text/event-stream"}
        if after:
            headers["Last-Event-ID"] = str(after)
        lines = self._transport.lines(
            path_of(job_id, "events"), parameters={"after": after}, headers=headers
        )
        event_form = TypeAdapter[JobEvent](JobEvent)
        for data in data_of_events(lines):
            yield _parsed_event(event_form, data)


def path_of(job_id: str, what: str = "") -> str:
    """Return the path of a job, or of a part of it."""
    path = f"{JOBS}/{quote(job_id, safe='')}"
    return f"{path}/{what}" if what else path


def _parsed_event(event_form: TypeAdapter[JobEvent], data: str) -> JobEvent:
    try:
        return event_form.validate_json(data)
    except ValidationError:
        raise ServiceError(
            f"The event stream holds {data[:80]!r}, which is no event of a job.",
            remedy="Use the command line of the same version as the service.",
        ) from None
