"""Reads from the store what the metrics say of jobs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select
from sqlalchemy.engine import RowMapping

from mics_core.spec.status import GroupState, GroupStatus, JobState, JobStatus
from service.database import Database
from service.tables import jobs, steps
from service.throughput import goodput_of

__all__ = ["LiveJob", "Readings", "read_jobs"]

_FINAL = tuple(state.value for state in JobState if state.is_final)


@dataclass(frozen=True, slots=True)
class LiveJob:
    """One job that has not ended; what is not known yet is none."""

    job_id: str
    name: str
    state: JobState
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    samples_per_s: float | None
    wanted_groups: int
    minimum_groups: int | None
    maximum_groups: int
    generation: int
    groups: Counter[GroupState]
    last_step_time: float | None
    goodput: float | None
    members: tuple[GroupStatus, ...]
    """The groups that train."""


@dataclass(frozen=True, slots=True)
class Readings:
    """All jobs at one moment."""

    states: Counter[JobState]
    live: list[LiveJob]


def read_jobs(database: Database, clock: Callable[[], float] = time.time) -> Readings:
    """Read how the jobs are. Blocks.

    Args:
        database: The service's.
        clock: Seconds since the epoch.
    """
    counts = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    is_open = jobs.c.state.not_in(_FINAL)
    with database.read() as connection:
        states = Counter({JobState(state): number for state, number in connection.execute(counts)})
        rows = connection.execute(select(jobs).where(is_open)).mappings().all()
        live = [_live_job(connection, row, clock()) for row in rows]
    return Readings(states, live)


def _live_job(connection: Connection, row: RowMapping, now: float) -> LiveJob:
    status = None if row["status"] is None else JobStatus.model_validate(row["status"])
    newest = connection.execute(
        select(steps.c.time, steps.c.samples, steps.c.tokens)
        .where(steps.c.job_id == row["job_id"])
        .order_by(steps.c.sequence.desc())
        .limit(1)
    ).one_or_none()
    rate = row["tokens_per_s"]
    samples_per_s = None
    if newest is not None and rate is not None and newest.tokens:
        samples_per_s = rate * newest.samples / newest.tokens
    return LiveJob(
        job_id=row["job_id"],
        name=row["name"],
        state=JobState(row["state"]),
        step=row["step"],
        steps=row["steps"],
        loss=row["loss"],
        tokens_per_s=rate,
        samples_per_s=samples_per_s,
        wanted_groups=row["wanted_groups"],
        minimum_groups=None if status is None else status.minimum_groups,
        maximum_groups=row["maximum_groups"],
        generation=row["generation"],
        groups=Counter(group.state for group in status.groups) if status else Counter(),
        last_step_time=None if newest is None else newest.time,
        goodput=goodput_of(connection, row, now),
        members=_members_of(status),
    )


def _members_of(status: JobStatus | None) -> tuple[GroupStatus, ...]:
    groups = () if status is None else status.groups
    return tuple(group for group in groups if group.state is GroupState.MEMBER)
