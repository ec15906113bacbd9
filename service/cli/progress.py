"""What a watched job has shown so far; pure, so that both ways of showing it agree.

Remaining time comes from the median of the last steps: a step in which a group joined or was lost
says little about the next ones.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable

from mics_core.spec.status import (
    GenerationEvent,
    JobEvent,
    JobState,
    StateEvent,
    StepEvent,
    StepRecord,
)
from service.schemas import JobDetail

__all__ = ["NEWS_KINDS", "JobProgress", "is_worth_showing"]

RECENT_STEPS = 20
"""Steps whose median duration the remaining time is taken from."""

NEWS_KINDS = ("state", "group", "generation", "scale", "checkpoint", "regroup")
"""Kinds of events without steps, of which a run may have millions."""

_ROUTINE_GROUP_STATES = ("placing", "starting", "ready", "member")


class JobProgress:
    """Collects a job's snapshots and events.

    Args:
        detail: The job as the service showed it last; `take_detail` replaces it.
        news: Events from before it, without steps.
        newest: Number of the last event from before it.
    """

    def __init__(self, detail: JobDetail, news: Iterable[JobEvent] = (), newest: int = 0):
        self.detail = detail
        self.state = detail.state
        self.reason = detail.reason
        self.step = detail.step
        self.records: deque[StepRecord] = deque(maxlen=400)
        self.news: deque[JobEvent] = deque(maxlen=8)
        self._newest = newest
        for event in news:
            self._take_news(event)

    def take_detail(self, detail: JobDetail) -> None:
        """Take a newer snapshot of the job."""
        self.detail, self.state, self.reason = detail, detail.state, detail.reason
        self.step = max(self.step, detail.step)

    def take_event(self, event: JobEvent) -> bool:
        """Take one event of the stream; return whether the snapshot may be out of date by it."""
        if isinstance(event, StepEvent):
            self.records.append(event.record)
            self.step = max(self.step, event.record.step + 1)
            return False
        if 0 < event.sequence <= self._newest:
            return False  # it is known, and what it tells may be over
        if isinstance(event, StateEvent):
            self.state, self.reason = event.state, event.reason
        self._take_news(event)
        return True

    def _take_news(self, event: JobEvent) -> None:
        if is_worth_showing(event):
            self._forget_announcement(event)
            self.news.append(event)

    def _forget_announcement(self, event: JobEvent) -> None:
        """A generation that is entered replaces its announcement."""
        if isinstance(event, GenerationEvent):
            for known in self.news:
                if (
                    isinstance(known, GenerationEvent)
                    and known.generation.number == event.generation.number
                ):
                    self.news.remove(known)
                    return

    @property
    def loss(self) -> float | None:
        """Loss of the last committed step."""
        return self.records[-1].loss if self.records else self.detail.loss

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the last steps of the current generation."""
        recent = self._recent()
        if recent:
            return statistics.median(record.tokens_per_s for record in recent)
        return self.detail.tokens_per_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last step at the present pace; none while the job is not training."""
        recent = self._recent()
        if self.state is not JobState.RUNNING or not recent:
            return None
        step_s = statistics.median(record.step_s for record in recent)
        return step_s * max(0, self.detail.steps - self.step)

    def _recent(self) -> list[StepRecord]:
        """The last steps, of the newest generation alone as soon as it has any."""
        newest = list(self.records)[-RECENT_STEPS:]
        return [record for record in newest if record.generation == newest[-1].generation]


def is_worth_showing(event: JobEvent) -> bool:
    """Whether an operator wants to read the event: not steps, not a group's way to membership.

    The generation that a group enters names it and says why.
    """
    if event.kind == "step":
        return False
    return event.kind != "group" or event.state not in _ROUTINE_GROUP_STATES
