"""The row of one job: how it is found, locked and changed."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update
from sqlalchemy.engine import RowMapping

from mics_core.errors import JobNotFoundError
from service.tables import jobs

__all__ = ["known_row", "row_of", "update_row"]


def row_of(connection: Connection, job_id: str, *, locked: bool = False) -> RowMapping | None:
    """Return the row of a job, locked until the transaction ends if asked; none if unknown."""
    if "\0" in job_id:
        return None  # Postgres refuses to be asked
    query = select(jobs).where(jobs.c.job_id == job_id)
    if locked:
        query = query.with_for_update()
    return connection.execute(query).mappings().one_or_none()


def known_row(connection: Connection, job_id: str, *, locked: bool = False) -> RowMapping:
    """Return the same.

    Raises:
        JobNotFoundError: It is not known.
    """
    row = row_of(connection, job_id, locked=locked)
    if row is None:
        raise JobNotFoundError(
            f"No job has the id {job_id[:200]!r}.", remedy="GET /api/v1/jobs lists the jobs."
        )
    return row


def update_row(connection: Connection, job_id: str, changes: dict[str, Any]) -> None:
    """Change columns of a job's row."""
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**changes))
