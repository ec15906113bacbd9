"""Counts what passes by in the event streams of live jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from mics_core.spec.status import (
    CheckpointEvent,
    GroupEvent,
    GroupState,
    JobEvent,
    RegroupEvent,
    RegroupPhases,
)

__all__ = ["LOSS_CAUSES", "PHASES", "EventMetrics", "loss_cause"]

PHASES = tuple(name.removesuffix("_s") for name in RegroupPhases.model_fields)

_CAUSES = (
    (
        "silent",
        r"not answered|does not come to|has said anything|no progress|without progress"
        r"|not become ready|not run within",
    ),
    ("connection", r"connection closed|process of rank \d+.* is gone"),
    ("peer", r"lost a worker of its group"),
    ("own_error", r"^Rank \d+ failed at step"),
    ("node", r"\bnode\b"),
    ("run", r"^Its run failed|^Ray ended its run"),
)

LOSS_CAUSES = (*(name for name, _pattern in _CAUSES), "other")

_RESULTS = ("written", "failed")

_REGROUP_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

_LAG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


def loss_cause(reason: str) -> str:
    """Return which class of causes a lost group's reason belongs to."""
    return next((name for name, pattern in _CAUSES if re.search(pattern, reason)), "other")


class EventMetrics:
    """Counters and histograms that follow the events.

    Args:
        registry: Where they are registered.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._known: set[str] = set()
        self._regroup = Histogram(
            "mics_job_regroup_seconds",
            "What the phases of changes of membership took.",
            ["job_id", "phase"],
            buckets=_REGROUP_S,
            registry=registry,
        )
        self._lost = Counter(
            "mics_job_lost_groups_total",
            "Partition groups that were lost, by the class of the reason.",
            ["job_id", "cause"],
            registry=registry,
        )
        self._checkpoints = Counter(
            "mics_job_checkpoints_total",
            "Checkpoints that were written or failed.",
            ["job_id", "result"],
            registry=registry,
        )
        self._stored = Counter(
            "mics_events_stored_total", "Events that were stored.", ["kind"], registry=registry
        )
        self._lag = Histogram(
            "mics_follower_lag_seconds",
            "From the moment of an event to that of its storing; the newest of each batch.",
            buckets=_LAG_S,
            registry=registry,
        )

    def begin(self, job_ids: Iterable[str]) -> None:
        """Have series for these jobs, at zero where nothing was counted.

        `increase` sees the first of anything only if it saw the zero before.
        """
        for job_id in job_ids:
            if job_id in self._known:
                continue
            self._known.add(job_id)
            for phase in PHASES:
                self._regroup.labels(job_id, phase)
            for cause in LOSS_CAUSES:
                self._lost.labels(job_id, cause)
            for result in _RESULTS:
                self._checkpoints.labels(job_id, result)

    def forget_all_but(self, job_ids: Collection[str]) -> None:
        """Drop the series of all other jobs."""
        for job_id in self._known.copy():
            if job_id not in job_ids:
                self._known.discard(job_id)
                for metric in (self._regroup, self._lost, self._checkpoints):
                    metric.remove_by_labels({"job_id": job_id})

    def observe(self, job_id: str, new: Sequence[JobEvent]) -> None:
        """Count events of a job that were just stored."""
        if not new:
            return
        self.begin([job_id])
        self._lag.observe(max(0.0, self._clock() - new[-1].time))
        for event in new:
            self._stored.labels(event.kind).inc()
            match event:
                case RegroupEvent(phases=phases):
                    for phase in PHASES:
                        seconds = getattr(phases, f"{phase}_s")
                        if seconds is not None:
                            self._regroup.labels(job_id, phase).observe(seconds)
                case GroupEvent(state=GroupState.LOST, reason=reason):
                    self._lost.labels(job_id, loss_cause(reason)).inc()
                case CheckpointEvent(error=error):
                    self._checkpoints.labels(job_id, "failed" if error else "written").inc()
                case _:
                    pass
