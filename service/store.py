"""Keeps the jobs and their histories, so that they outlive the service and the cluster.

All functions block and are called in threads. Any number of threads may read; writes of one process
take turns, which is what SQLite wants anyway and keeps "read the last number, append after it" one
step. One database belongs to one service process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.engine import RowMapping

from mics_core.errors import JobNotFoundError
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobEvent, JobState, JobStatus, StateEvent, StepEvent, StepRecord
from service import rows
from service.schemas import JobDetail, JobSummary
from service.tables import events, jobs, open_database, steps

__all__ = ["Store"]

_FINAL_STATES = tuple(state.value for state in JobState if state.is_final)


class Store:
    """The jobs of one service, in the database at `url`."""

    def __init__(self, url: str):
        self._engine = open_database(url)
        self._writing = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def add_job(
        self, job_id: str, spec: JobSpec, *, source: str, created: float, reason: str
    ) -> bool:
        """Add a job that is pending; returns false if it is there already."""
        with self._write() as connection:
            if _row(connection, job_id) is not None:
                return False
            row = rows.new_job_row(job_id, spec, source, created, reason)
            connection.execute(insert(jobs).values(**row))
            return True

    def remove_job(self, job_id: str) -> None:
        """Forget a job that never came to be."""
        with self._write() as connection:
            for table in (steps, events, jobs):
                connection.execute(delete(table).where(table.c.job_id == job_id))

    def list_jobs(
        self, *, states: Sequence[JobState] = (), limit: int | None = None
    ) -> list[JobSummary]:
        """Return the jobs, newest first; only those in one of `states` if any is named."""
        # Without the specifications and statuses, which are long.
        columns = (jobs.c[name] for name in JobSummary.model_fields)
        query = select(*columns).order_by(jobs.c.created.desc(), jobs.c.job_id).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        with self._engine.connect() as connection:
            return [rows.summary_of_row(row) for row in connection.execute(query).mappings()]

    def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self._engine.connect() as connection:
            return rows.detail_of_row(_known_row(connection, job_id))

    def last_sequence(self, job_id: str) -> int:
        """Return the sequence number of a job's newest stored event, 0 before the first.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self._engine.connect() as connection:
            return int(_known_row(connection, job_id)["last_sequence"])

    def has_job(self, job_id: str) -> bool:
        """Return whether a job is known, ended or not."""
        with self._engine.connect() as connection:
            return _row(connection, job_id) is not None

    def open_job_ids(self) -> set[str]:
        """Return the jobs that have not ended, as far as is known."""
        query = select(jobs.c.job_id).where(jobs.c.state.not_in(_FINAL_STATES))
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def open_job(self, job_id: str) -> rows.OpenJob | None:
        """Return what is needed to decide about a job; none if it has ended or is not known."""
        with self._engine.connect() as connection:
            row = _row(connection, job_id)
        if row is None or row["state"] in _FINAL_STATES:
            return None
        return rows.open_job_of_row(row)

    def append_events(self, job_id: str, new: Iterable[JobEvent]) -> list[JobEvent]:
        """Store events of a job and let its row follow them.

        Returns:
            Those that were new. What is stored already, and whatever comes after the end, is not.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self._write() as connection:
            return _append(connection, _known_row(connection, job_id), new)

    def close_job(
        self, job_id: str, state: JobState, reason: str, time: float, status: JobStatus | None
    ) -> list[JobEvent]:
        """End a job whose supervisor can tell no more, with a state event in its name.

        Args:
            job_id: The job.
            state: Its final state.
            reason: Why, in one sentence.
            time: When.
            status: What its status shall be from now on, if it has one.

        Returns:
            The event, or nothing if the job has ended already.
        """
        with self._write() as connection:
            row = _known_row(connection, job_id)
            if status is not None and row["state"] not in _FINAL_STATES:
                _update(connection, job_id, rows.changes_of_status(status))
            last = StateEvent(
                sequence=row["last_sequence"] + 1, time=time, state=state, reason=reason
            )
            return _append(connection, row, [last])

    def save_status(self, job_id: str, status: JobStatus) -> None:
        """Keep the newest status of a live job."""
        with self._write() as connection:
            _update(connection, job_id, rows.changes_of_status(status))

    def events_after(self, job_id: str, after: int, limit: int) -> list[JobEvent]:
        """Return the events beyond sequence number `after`, in order, at most `limit`."""
        found: list[JobEvent] = []
        with self._engine.connect() as connection:
            # Two tables are two questions, and a write may come between them. Up to the number that
            # was the last before the first question, both have everything.
            row = _row(connection, job_id)
            newest = 0 if row is None else row["last_sequence"]
            for table, event_of in (
                (events, rows.event_of_row),
                (steps, rows.step_event_of_row),
            ):
                query = (
                    select(table)
                    .where(table.c.job_id == job_id, table.c.sequence.between(after + 1, newest))
                    .order_by(table.c.sequence)
                    .limit(limit)
                )
                found += [event_of(row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda event: event.sequence)[:limit]

    def newest_steps(self, job_id: str, limit: int) -> list[StepRecord]:
        """Return the newest committed steps, oldest first, at most `limit`."""
        query = (
            select(steps)
            .where(steps.c.job_id == job_id)
            .order_by(steps.c.sequence.desc())
            .limit(limit)
        )
        with self._engine.connect() as connection:
            newest = [rows.step_of_row(row) for row in connection.execute(query).mappings()]
        return newest[::-1]

    def request_cancel(self, job_id: str) -> bool:
        """Note that a job shall be cancelled; returns false if that was noted before."""
        with self._write() as connection:
            if _known_row(connection, job_id)["cancel_requested"]:
                return False
            _update(connection, job_id, {"cancel_requested": True})
            return True

    def withdraw_cancel(self, job_id: str) -> None:
        """Undo `request_cancel`, where the cluster could not be told."""
        with self._write() as connection:
            _update(connection, job_id, {"cancel_requested": False})

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._writing, self._engine.begin() as connection:
            yield connection


def _append(connection: Connection, row: RowMapping, new: Iterable[JobEvent]) -> list[JobEvent]:
    if row["state"] in _FINAL_STATES:
        return []
    job_id: str = row["job_id"]
    fresh: list[JobEvent] = []
    last_sequence: int = row["last_sequence"]
    changes: dict[str, Any] = {}
    for event in new:
        if event.sequence <= last_sequence:
            continue
        fresh.append(event)
        last_sequence = event.sequence
        changes |= rows.changes_of_event(event)
        if isinstance(event, StateEvent) and event.state.is_final:
            break
    if not fresh:
        return []
    step_rows = [rows.row_of_step(job_id, event) for event in fresh if isinstance(event, StepEvent)]
    other_rows = [
        rows.row_of_event(job_id, event) for event in fresh if not isinstance(event, StepEvent)
    ]
    if step_rows:
        connection.execute(insert(steps), step_rows)
    if other_rows:
        connection.execute(insert(events), other_rows)
    _update(connection, job_id, changes | {"last_sequence": last_sequence})
    return fresh


def _row(connection: Connection, job_id: str) -> RowMapping | None:
    return connection.execute(select(jobs).where(jobs.c.job_id == job_id)).mappings().one_or_none()


def _known_row(connection: Connection, job_id: str) -> RowMapping:
    row = _row(connection, job_id)
    if row is None:
        raise JobNotFoundError(
            f"No job has the id {job_id[:200]!r}.", remedy="GET /api/v1/jobs lists the jobs."
        )
    return row


def _update(connection: Connection, job_id: str, changes: dict[str, Any]) -> None:
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**changes))
