"""The history of a job's steps at a chosen resolution, summed up by the database.

However long a run is, what is read here are as many rows as points are asked for, and one median
for each number of groups that the run has had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, select
from sqlalchemy.engine import RowMapping

from mics_core.spec.status import JobState, JobStatus
from service.schemas import Throughput, ThroughputPoint
from service.tables import steps

__all__ = ["goodput_of", "throughput_of"]

_USUAL_FACTOR = 1.5
"""A step that takes longer than so many medians is no usual one."""
_TERA = 1e12


def throughput_of(
    connection: Connection,
    row: RowMapping,
    points: int,
    first_step: int | None,
    last_step: int | None,
    now: float,
) -> Throughput:
    """Return the steps of a job from `first_step` to `last_step`, at most at `points` points.

    Args:
        connection: To the database.
        row: The job's row.
        points: Most points; all but the last stand for the same number of steps.
        first_step: First step; none for the first of the run.
        last_step: Last step; none for the newest.
        now: Seconds since the epoch.
    """
    status = None if row["status"] is None else JobStatus.model_validate(row["status"])
    wanted = _committed(row["job_id"])
    if first_step is not None:
        wanted = wanted & (steps.c.step >= first_step)
    if last_step is not None:
        wanted = wanted & (steps.c.step <= last_step)
    low, high = connection.execute(
        select(func.min(steps.c.step), func.max(steps.c.step)).where(wanted)
    ).one()
    width = 1 if low is None else max(1, math.ceil((high - low + 1) / points))
    good = _good_of(connection, row["job_id"])
    records: list[ThroughputPoint] = []
    if good is not None and low is not None:
        good_s = _good_before(connection, row["job_id"], good, low)
        for one in _points(connection, wanted, good, low, width):
            good_s += one.good_s
            records.append(_point(one, status, good.share(good_s, one.time)))
    return Throughput(
        job_id=row["job_id"],
        tokens_per_s=row["tokens_per_s"],
        goodput=None if good is None else _goodput_now(connection, row, good, now),
        first_time=None if good is None else good.first,
        mfu=records[-1].mfu if records else None,
        steps_per_point=width,
        records=records,
    )


def goodput_of(connection: Connection, row: RowMapping, now: float) -> float | None:
    """Return the share of a job's time that went into steps of usual length.

    `Throughput.goodput` says how it is counted.
    """
    good = _good_of(connection, row["job_id"])
    return None if good is None else _goodput_now(connection, row, good, now)


@dataclass(frozen=True, slots=True)
class _Good:
    """How the good time of a job's steps is counted.

    Args:
        first: When the first step was committed; the time begins there, so it does not count.
        seconds: Seconds of a step that count, in the database's words.
    """

    first: float
    seconds: ColumnElement[float]

    def share(self, good_s: float, until: float) -> float | None:
        """Return what share of the time so many good seconds are; none before any has passed."""
        elapsed_s = until - self.first
        return min(1.0, good_s / elapsed_s) if elapsed_s > 0.0 else None


def _good_of(connection: Connection, job_id: str) -> _Good | None:
    """Look at a whole run for what is usual in it; none before the first step."""
    committed = _committed(job_id)
    first = connection.execute(select(func.min(steps.c.time)).where(committed)).scalar_one()
    if first is None:
        return None
    counted = committed & (steps.c.time > first)
    sizes = connection.execute(
        select(steps.c.num_groups, func.count()).where(counted).group_by(steps.c.num_groups)
    ).all()
    is_long: list[tuple[ColumnElement[bool], float]] = []
    for num_groups, number in sizes:
        is_alike = steps.c.num_groups == num_groups
        median_s = connection.execute(
            select(steps.c.step_s)
            .where(counted & is_alike)
            .order_by(steps.c.step_s)
            .limit(1)
            .offset((number - 1) // 2)
        ).scalar_one()
        is_long.append((is_alike & (steps.c.step_s > _USUAL_FACTOR * median_s), median_s))
    return _Good(first, case((steps.c.time <= first, 0.0), *is_long, else_=steps.c.step_s))


def _goodput_now(connection: Connection, row: RowMapping, good: _Good, now: float) -> float | None:
    good_s, last = connection.execute(
        select(func.sum(good.seconds), func.max(steps.c.time)).where(_committed(row["job_id"]))
    ).one()
    if last == good.first:
        return None
    is_under_way = not JobState(row["state"]).is_at_rest
    return good.share(good_s, max(now, last) if is_under_way else last)


def _committed(job_id: str) -> ColumnElement[bool]:
    return (steps.c.job_id == job_id) & steps.c.superseded.is_(False)


def _good_before(connection: Connection, job_id: str, good: _Good, step: int) -> float:
    before = _committed(job_id) & (steps.c.step < step)
    return float(connection.execute(select(func.sum(good.seconds)).where(before)).scalar_one() or 0)


def _points(
    connection: Connection, wanted: ColumnElement[bool], good: _Good, low: int, width: int
) -> list[Row[Any]]:
    bucket = (steps.c.step - low) // width
    return list(
        connection.execute(
            select(
                func.count().label("number"),
                func.count(steps.c.loss).label("num_losses"),
                func.max(steps.c.step).label("step"),
                func.max(steps.c.time).label("time"),
                func.avg(steps.c.loss).label("loss"),
                func.sum(steps.c.tokens).label("tokens"),
                func.sum(steps.c.samples).label("samples"),
                func.sum(steps.c.step_s).label("seconds"),
                func.sum(good.seconds).label("good_s"),
                func.count(steps.c.communication_s).label("num_measured"),
                func.sum(steps.c.communication_s).label("communication_s"),
                # What each group of workers did, however their number changed in between.
                func.sum(steps.c.samples * 1.0 / steps.c.num_groups).label("group_samples"),
                func.avg(steps.c.gradient_norm).label("gradient_norm"),
                func.avg(steps.c.learning_rate).label("learning_rate"),
                func.max(steps.c.generation).label("generation"),
                # The last one: numbers of groups are far below the factor.
                (func.max(steps.c.step * 1_000_000 + steps.c.num_groups) % 1_000_000).label(
                    "num_groups"
                ),
            )
            .where(wanted)
            .group_by(bucket)
            .order_by(bucket)
        )
    )


def _point(one: Row[Any], status: JobStatus | None, goodput: float | None) -> ThroughputPoint:
    number, seconds = one.number, one.seconds
    tflops, mfu = None, None
    if status is not None and status.model_flops_per_sample is not None and seconds > 0.0:
        samples = float(one.group_samples) / status.partition_size
        flops_per_s = status.model_flops_per_sample * samples / seconds
        tflops = flops_per_s / _TERA
        if status.peak_flops_per_s is not None:
            mfu = flops_per_s / status.peak_flops_per_s
    communication_share = None
    if one.num_measured == number and seconds > 0.0:
        # A step's waits may have begun before its time is counted: after a generation's beginning.
        communication_share = min(1.0, one.communication_s / seconds)
    return ThroughputPoint(
        step=one.step,
        time=one.time,
        loss=one.loss if one.num_losses == number else math.nan,
        tokens=int(one.tokens) / number,
        samples=int(one.samples) / number,
        step_s=seconds / number,
        tokens_per_s=int(one.tokens) / seconds if seconds > 0.0 else 0.0,
        samples_per_s=int(one.samples) / seconds if seconds > 0.0 else 0.0,
        tflops_per_worker=tflops,
        mfu=mfu,
        communication_share=communication_share,
        goodput=goodput,
        generation=one.generation,
        num_groups=one.num_groups,
        gradient_norm=one.gradient_norm,
        learning_rate=one.learning_rate,
    )
