"""The list of jobs: which of them, in which order, and where a page goes on."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass

from sqlalchemy import Select, and_, or_, select

from mics_core.spec.status import JobState
from service.errors import RequestError
from service.schemas import JobSummary
from service.tables import jobs, labels

__all__ = ["JobFilter", "Position", "query_of"]


@dataclass(frozen=True, slots=True)
class Position:
    """The place of a job in the list, which is newest first."""

    created: float
    job_id: str

    @property
    def cursor(self) -> str:
        """The place as text that clients hand back, and need not understand."""
        text = json.dumps([self.created, self.job_id])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def from_cursor(cls, cursor: str) -> Position:
        """Return the place that a cursor stands for.

        Raises:
            RequestError: It is none that this service gave.
        """
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            text = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
            created, job_id = json.loads(text)
            if not isinstance(job_id, str) or not math.isfinite(created):
                raise ValueError(cursor)
            job_id.encode()  # half a surrogate pair is JSON, and nothing that a database takes
        except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
            raise RequestError(
                422,
                f"The cursor {cursor[:80]!a} is no `next_cursor` of this list.",
                remedy="Begin without a cursor, and hand `next_cursor` back as it came.",
            ) from None
        return cls(float(created), job_id.replace("\0", ""))


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows.

    Args:
        states: Only jobs in one of these, if any is named.
        owner: Only jobs of this owner.
        labels: Only jobs with all of these, as names and values.
        after: Only jobs that come after this place.
        limit: At most so many.
    """

    states: tuple[JobState, ...] = ()
    owner: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    after: Position | None = None
    limit: int | None = None


def query_of(wanted: JobFilter) -> Select[tuple[object, ...]]:
    """Return the query for the lines of the list."""
    # Without the specifications and statuses, which are long.
    columns = (jobs.c[name] for name in JobSummary.model_fields)
    query = select(*columns).order_by(jobs.c.created.desc(), jobs.c.job_id).limit(wanted.limit)
    if wanted.states:
        query = query.where(jobs.c.state.in_([state.value for state in wanted.states]))
    if wanted.owner is not None:
        query = query.where(jobs.c.owner == wanted.owner)
    for name, value in wanted.labels:
        has_label = and_(
            labels.c.job_id == jobs.c.job_id, labels.c.name == name, labels.c.value == value
        )
        query = query.where(select(labels.c.job_id).where(has_label).exists())
    if (after := wanted.after) is not None:
        query = query.where(
            or_(
                jobs.c.created < after.created,
                and_(jobs.c.created == after.created, jobs.c.job_id > after.job_id),
            )
        )
    return query
