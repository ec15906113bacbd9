"""The histories of jobs in the database: their events, their steps, and their last status."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import select
from sqlalchemy.engine import RowMapping

from mics_core.spec.status import JobEvent, JobState, JobStatus, StateEvent
from service import rows
from service.database import Database
from service.history import FINAL_STATES, append, read_events
from service.job_row import known_row, row_of, update_row
from service.schemas import Throughput
from service.tables import jobs
from service.throughput import throughput_of

__all__ = ["HistoryStore", "state_event"]

_LARGEST = 2**63 - 1


class HistoryStore:
    """The histories of the jobs in a database.

    Args:
        database: The database.
    """

    def __init__(self, database: Database):
        self.database = database

    def last_sequence(self, job_id: str) -> int:
        """Return the sequence number of a job's newest stored event, 0 before the first.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.read() as connection:
            return int(known_row(connection, job_id)["last_sequence"])

    def last_sequences(self, job_ids: Collection[str]) -> dict[str, int]:
        """Return the same for several jobs at once, without those that are not known."""
        query = select(jobs.c.job_id, jobs.c.last_sequence).where(jobs.c.job_id.in_(job_ids))
        with self.database.read() as connection:
            return {row.job_id: row.last_sequence for row in connection.execute(query)}

    def append_events(self, job_id: str, new: Iterable[JobEvent]) -> list[JobEvent]:
        """Store events of a job and let its row follow them.

        Returns:
            Those that were new. What is stored already, and whatever comes after the end, is not.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.write() as connection:
            return append(connection, known_row(connection, job_id, locked=True), new)

    def close_job(
        self, job_id: str, state: JobState, reason: str, time: float, status: JobStatus | None
    ) -> list[JobEvent]:
        """End a job whose supervisor can tell no more, with a state event in its name.

        Args:
            job_id: The job.
            state: The state that it is in from now on.
            reason: Why, in one sentence.
            time: When.
            status: What its status shall be from now on, if it has one.

        Returns:
            The event, or nothing if the job has ended already.
        """
        with self.database.write() as connection:
            row = known_row(connection, job_id, locked=True)
            if status is not None and row["state"] not in FINAL_STATES:
                # The last events may have told of more steps than the last status.
                seen = {"step": row["step"], "loss": row["loss"]}
                status = status.model_copy(update=seen)
                update_row(connection, job_id, rows.changes_of_status(status))
            return append(connection, row, [state_event(row, time, state, reason)])

    def save_status(self, job_id: str, status: JobStatus) -> None:
        """Keep the newest status of a live job."""
        with self.database.write() as connection:
            update_row(connection, job_id, rows.changes_of_status(status))

    def events_after(
        self, job_id: str, after: int, limit: int, kinds: Collection[str] = ()
    ) -> list[JobEvent]:
        """Return the events beyond sequence number `after`, in order, at most `limit`."""
        with self.database.read() as connection:
            row = row_of(connection, job_id)
            newest = 0 if row is None else row["last_sequence"]
            return read_events(connection, job_id, after, newest, limit, kinds)

    def events_of_kind(self, job_id: str, kind: str) -> list[JobEvent]:
        """Return all events of a kind that is rare: not of steps."""
        with self.database.read() as connection:
            return read_events(connection, job_id, 0, _LARGEST, _LARGEST, (kind,))

    def throughput(
        self, job_id: str, points: int, first_step: int | None, last_step: int | None, now: float
    ) -> Throughput:
        """Return the history of a job's steps, see `service.throughput`.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.read() as connection:
            row = known_row(connection, job_id)
            return throughput_of(connection, row, points, first_step, last_step, now)


def state_event(row: RowMapping, time: float, state: JobState, reason: str) -> StateEvent:
    """Return the event with which the service itself tells of a job's state."""
    return StateEvent(sequence=row["last_sequence"] + 1, time=time, state=state, reason=reason)
