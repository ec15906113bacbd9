"""A job's events in the database: how they are appended, and how they are read again.

Sequence numbers of a job have no gap. Whoever appends holds the job's row and looks at its last
number first, so that events are stored once and in order, whichever of several services follows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.engine import RowMapping

from mics_core.spec.status import JobEvent, JobState, StateEvent, StepEvent
from service import rows
from service.tables import events, jobs, steps

__all__ = ["FINAL_STATES", "append", "read_events"]

FINAL_STATES = tuple(state.value for state in JobState if state.is_final)


def append(connection: Connection, row: RowMapping, new: Iterable[JobEvent]) -> list[JobEvent]:
    """Store the events that are new, and let the job's row follow them.

    Args:
        connection: In a transaction.
        row: The job's row, locked in it.
        new: Events in order.

    Returns:
        Those that were new. What is stored already, and whatever comes after the end, is not.
    """
    if row["state"] in FINAL_STATES:
        return []
    job_id: str = row["job_id"]
    fresh: list[JobEvent] = []
    last_sequence: int = row["last_sequence"]
    num_steps: int = row["step"]
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
    step_events = [event for event in fresh if isinstance(event, StepEvent)]
    others = [event for event in fresh if not isinstance(event, StepEvent)]
    if step_events:
        connection.execute(
            insert(steps), [rows.row_of_step(job_id, event) for event in step_events]
        )
        _supersede(connection, job_id, num_steps, step_events)
    if others:
        connection.execute(insert(events), [rows.row_of_event(job_id, event) for event in others])
    changes["last_sequence"] = last_sequence
    connection.execute(update(jobs).where(jobs.c.job_id == job_id).values(**changes))
    return fresh


def _supersede(
    connection: Connection, job_id: str, num_steps: int, new: Iterable[StepEvent]
) -> None:
    """Mark what was committed before and is committed again: the run went on from before it."""
    for event in new:
        step = event.record.step
        if step < num_steps:
            connection.execute(
                update(steps)
                .where(
                    steps.c.job_id == job_id,
                    steps.c.step >= step,
                    steps.c.sequence < event.sequence,
                )
                .values(superseded=True)
            )
        num_steps = step + 1


def read_events(
    connection: Connection,
    job_id: str,
    after: int,
    newest: int,
    limit: int,
    kinds: Collection[str] = (),
) -> list[JobEvent]:
    """Return the events with numbers beyond `after` up to `newest`, in order, at most `limit`.

    Args:
        connection: To the database.
        job_id: The job.
        after: Sequence number.
        newest: The last number when the reader began. Two tables are two questions, and a write may
            come between them; up to this number both have everything.
        limit: Most events.
        kinds: Only events of these kinds, if any is named.
    """
    found: list[JobEvent] = []
    for table, event_of in ((events, rows.event_of_row), (steps, rows.step_event_of_row)):
        query = (
            select(table)
            .where(table.c.job_id == job_id, table.c.sequence.between(after + 1, newest))
            .order_by(table.c.sequence)
            .limit(limit)
        )
        if kinds and table is steps and "step" not in kinds:
            continue
        if kinds and table is events:
            query = query.where(events.c.kind.in_(kinds))
        found += [event_of(row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda event: event.sequence)[:limit]
