"""Keeps the jobs and their histories, so that they outlive the service and the cluster.

All functions block and are called in threads. Any number of threads, and on Postgres any number of
services, may call them at once: what is read and then written is locked in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from mics_core.errors import JobConflictError
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobEvent, JobState, JobStatus
from service import rows
from service.database import Database
from service.errors import RequestError
from service.histories import HistoryStore, state_event
from service.history import FINAL_STATES, append
from service.job_row import known_row, row_of, update_row
from service.listing import JobFilter, query_of
from service.schemas import JobDetail, JobSummary
from service.tables import deleted_jobs, events, jobs, labels, steps, submissions

__all__ = ["DELETED_REMEMBERED_S", "Store", "SubmissionKey"]

DELETED_REMEMBERED_S = 86_400.0
"""For how long a deleted job is known as such, so that it does not come back."""


@dataclass(frozen=True, slots=True)
class SubmissionKey:
    """What makes the repetition of a submission known as one.

    Args:
        owner: Whose key; other owners may use the same.
        key: The client's.
        body_hash: Of the specification that came with it.
    """

    owner: str | None
    key: str
    body_hash: str


class Store(HistoryStore):
    """The jobs of the service with their histories, in the database at `url`."""

    def __init__(self, url: str):
        super().__init__(Database(url))

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def check(self) -> None:
        """Ask the database the shortest question.

        Raises:
            DBAPIError: It does not answer.
        """
        with self.database.read() as connection:
            connection.execute(text("SELECT 1"))

    # Jobs come and go.

    def add_job(
        self,
        job_id: str,
        spec: JobSpec,
        *,
        source: str,
        created: float,
        reason: str,
        owner: str | None = None,
        key: SubmissionKey | None = None,
        handed_over: bool = True,
        most_open: int | None = None,
    ) -> bool:
        """Add a job that is pending, with the key of its submission if it has one.

        Args:
            job_id: Its id.
            spec: Its specification.
            source: `rest` or `ray`.
            created: When.
            reason: Why it is pending.
            owner: Whose it is.
            key: What the client gave to know its repetition by.
            handed_over: Whether the cluster has it already.
            most_open: How many open jobs its owner may have with it; none sets no limit.

        Returns:
            False if the job, or another one of that key, is there already, or if it was deleted.

        Raises:
            RequestError: Its owner has as many open jobs as one may have.
        """
        row = rows.new_job_row(job_id, spec, source, created, reason)
        row |= {"owner": owner, "handed_over": handed_over}
        try:
            with self.database.write(durable=True) as connection:
                if most_open is not None:
                    # Counted where it is added, else submissions at the same moment go beyond it.
                    self.database.lock(connection, f"open jobs of {owner}")
                    if key is not None and _job_of_key(connection, key.owner, key.key) is not None:
                        return False
                    _require_room(connection, owner, most_open)
                gone = select(deleted_jobs.c.job_id).where(deleted_jobs.c.job_id == job_id)
                if row_of(connection, job_id) is not None or connection.scalar(gone) is not None:
                    return False
                connection.execute(insert(jobs).values(**row))
                if key is not None:
                    connection.execute(insert(submissions).values(**rows.row_of_key(job_id, key)))
                if spec.labels:
                    connection.execute(insert(labels), rows.rows_of_labels(job_id, spec))
        except IntegrityError:
            return False  # somebody else was quicker
        return True

    def owner_of(self, job_id: str) -> str | None:
        """Return who owns a job; none if nobody in particular does.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.read() as connection:
            owner: str | None = known_row(connection, job_id)["owner"]
            return owner

    def require_room(self, owner: str | None, most: int) -> None:
        """Return if an owner may have another open job.

        Raises:
            RequestError: Its owner has as many as one may have.
        """
        with self.database.read() as connection:
            _require_room(connection, owner, most)

    def submission(self, owner: str | None, key: str) -> tuple[str, str] | None:
        """Return the job of a key, and the hash of the specification that came with it."""
        with self.database.read() as connection:
            return _job_of_key(connection, owner, key)

    def delete_job(self, job_id: str, time: float) -> None:
        """Forget a job that has ended, at this time.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It has not ended.
        """
        with self.database.write() as connection:
            row = known_row(connection, job_id, locked=True)
            if row["state"] not in FINAL_STATES:
                raise JobConflictError(
                    f"Job {job_id} is {row['state']}, and only the record of a job that has ended"
                    " can be deleted.",
                    remedy="Cancel it first, and wait for its end.",
                )
            _remove(connection, job_id)
            old = delete(deleted_jobs).where(deleted_jobs.c.time < time - DELETED_REMEMBERED_S)
            connection.execute(old)
            connection.execute(insert(deleted_jobs).values(job_id=job_id, time=time))

    # Jobs are looked at.

    def list_jobs(self, wanted: JobFilter | None = None) -> list[JobSummary]:
        """Return the jobs, newest first."""
        with self.database.read() as connection:
            found = connection.execute(query_of(wanted or JobFilter())).mappings()
            return [rows.summary_of_row(row) for row in found]

    def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.read() as connection:
            return rows.detail_of_row(known_row(connection, job_id))

    def has_job(self, job_id: str) -> bool:
        """Return whether a job is known, ended or not, or was deleted."""
        gone = select(deleted_jobs.c.job_id).where(deleted_jobs.c.job_id == job_id)
        with self.database.read() as connection:
            return row_of(connection, job_id) is not None or connection.scalar(gone) is not None

    def open_job_ids(self) -> set[str]:
        """Return the jobs that have not ended, as far as is known."""
        query = select(jobs.c.job_id).where(jobs.c.state.not_in(FINAL_STATES))
        with self.database.read() as connection:
            return set(connection.execute(query).scalars())

    def open_job(self, job_id: str) -> rows.OpenJob | None:
        """Return what is needed to decide about a job; none if it has ended or is not known."""
        with self.database.read() as connection:
            row = row_of(connection, job_id)
        if row is None or row["state"] in FINAL_STATES:
            return None
        return rows.open_job_of_row(row)

    def must_not_run(self, job_id: str) -> bool:
        """Return whether a job has ended whose newest driver a service has started.

        A job that somebody else started may have the id of one that ended before.
        """
        with self.database.read() as connection:
            row = row_of(connection, job_id)
        if row is None or row["state"] not in FINAL_STATES:
            return False
        return bool(row["source"] == "rest" or row["submission"] > 0)

    def driver_id(self, job_id: str) -> str:
        """Return the id of a job's newest driver at the Ray Jobs API.

        Raises:
            JobNotFoundError: It is not known.
        """
        with self.database.read() as connection:
            return rows.open_job_of_row(known_row(connection, job_id)).driver_id

    def open_statuses(self) -> dict[str, JobStatus]:
        """Return the last status of every job that runs, as far as is known."""
        at_rest = (*FINAL_STATES, JobState.PAUSED.value)
        query = select(jobs.c.job_id, jobs.c.status).where(
            jobs.c.state.not_in(at_rest), jobs.c.status.is_not(None)
        )
        with self.database.read() as connection:
            found = connection.execute(query)
            return {row.job_id: JobStatus.model_validate(row.status) for row in found}

    # What is asked of them.

    def request_cancel(self, job_id: str) -> bool:
        """Note that a job shall be cancelled; returns false if that was noted before."""
        with self.database.write() as connection:
            if known_row(connection, job_id, locked=True)["cancel_requested"]:
                return False
            update_row(connection, job_id, {"cancel_requested": True})
            return True

    def withdraw_cancel(self, job_id: str) -> None:
        """Undo `request_cancel`, where the cluster could not be told."""
        with self.database.write() as connection:
            update_row(connection, job_id, {"cancel_requested": False})

    def resume_job(self, job_id: str, time: float, reason: str) -> list[JobEvent]:
        """Have a paused job be pending again; a driver is still to be handed over.

        Its specification has the groups that were wanted last, and goes on from its checkpoint.

        Returns:
            The state event that says so.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It is not paused.
        """
        with self.database.write(durable=True) as connection:
            row = known_row(connection, job_id, locked=True)
            if row["state"] != JobState.PAUSED.value:
                raise JobConflictError(
                    f"Job {job_id} is {row['state']}; only a paused job can be resumed.",
                    remedy="Submit it again as a new job if it has ended; with the same"
                    " checkpoint.directory it goes on from its newest checkpoint.",
                )
            told = append(connection, row, [state_event(row, time, JobState.PENDING, reason)])
            changes = {
                "spec": rows.resumed_spec(row),
                "submission": row["submission"] + 1,
                "handed_over": False,
                "cancel_requested": False,
            }
            update_row(connection, job_id, changes)
            return told

    def note_handed_over(self, job_id: str, submission: int) -> None:
        """Note that the cluster has a driver of a job, if that is still its newest.

        Args:
            job_id: The job.
            submission: How often it had been resumed when the driver was handed over.
        """
        with self.database.write() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.job_id == job_id, jobs.c.submission == submission)
                .values(handed_over=True)
            )

    def give_up_driver(
        self, job_id: str, submission: int, state: JobState, reason: str, time: float
    ) -> list[JobEvent]:
        """Close a job, or pause it again, whose driver was not handed over, if that is still so.

        Args:
            job_id: The job.
            submission: How often it had been resumed when that was decided.
            state: The state that it is in from now on.
            reason: Why, in one sentence.
            time: When.

        Returns:
            The event that says so; nothing if the job is not pending any more, or its driver was
            handed over or has a successor.
        """
        with self.database.write() as connection:
            row = known_row(connection, job_id, locked=True)
            is_waiting = row["state"] == JobState.PENDING.value and not row["handed_over"]
            if not is_waiting or row["submission"] != submission:
                return []
            # No driver of it is to be handed over any more.
            update_row(connection, job_id, {"handed_over": True})
            return append(connection, row, [state_event(row, time, state, reason)])


def _job_of_key(connection: Connection, owner: str | None, key: str) -> tuple[str, str] | None:
    query = select(submissions.c.job_id, submissions.c.body_hash).where(
        submissions.c.owner == (owner or ""), submissions.c.key == key
    )
    found = connection.execute(query).one_or_none()
    return (found.job_id, found.body_hash) if found is not None else None


def _require_room(connection: Connection, owner: str | None, most: int) -> None:
    query = select(func.count()).where(
        jobs.c.owner == owner, jobs.c.source == "rest", jobs.c.state.not_in(FINAL_STATES)
    )
    if connection.execute(query).scalar_one() < most:
        return
    whose = f"{owner} has" if owner is not None else "This service has"
    raise RequestError(
        429,
        f"{whose} {most} open jobs, as many as one owner may have.",
        remedy="Wait for one to end, cancel one, or have MICS_OPEN_JOBS_PER_OWNER raised.",
        code="too_many_jobs",
    )


def _remove(connection: Connection, job_id: str) -> None:
    for table in (submissions, labels, steps, events, jobs):
        connection.execute(delete(table).where(table.c.job_id == job_id))
