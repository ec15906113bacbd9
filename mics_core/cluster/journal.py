"""The journal of a job: its events in order, its recent steps, and readers that wait for more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any

from mics_core.cluster.regrouping import Regrouped
from mics_core.spec.changes import GroupsChange
from mics_core.spec.status import (
    CheckpointEvent,
    GenerationEvent,
    GenerationRecord,
    GroupEvent,
    GroupState,
    JobEvent,
    JobState,
    RegroupEvent,
    ScaleEvent,
    StateEvent,
    StepEvent,
    StepRecord,
)

__all__ = ["Bell", "Journal"]

_KEPT_EVENTS = 100_000
_RATE_STEPS = 20


class Bell:
    """Wakes every task that waits for something to change."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits now."""
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Wait for the next ring, or for the time limit."""
        rung = self._rung
        try:
            await asyncio.wait_for(rung.wait(), timeout_s)
        except TimeoutError:
            return

    def __reduce__(self) -> tuple[type[Bell], tuple[()]]:
        return Bell, ()  # who waits does so in this process


class Journal:
    """Events with sequence numbers that count on without a gap.

    Args:
        after: Number of the last event of the job before it was paused, if it was.
    """

    def __init__(self, after: int = 0) -> None:
        self._events: deque[JobEvent] = deque(maxlen=_KEPT_EVENTS)
        self._sequence = after
        self._recent: deque[StepRecord] = deque(maxlen=_RATE_STEPS)
        self._took_s: deque[float] = deque(maxlen=_RATE_STEPS)
        self._bell = Bell()
        self.last_checkpoint: int | None = None
        """Steps committed in the newest complete checkpoint."""
        self._last_failure: tuple[int, str] | None = None
        self.read_up_to = after
        """Highest sequence number that a reader has asked to go beyond."""

    @property
    def last_sequence(self) -> int:
        """Sequence number of the newest event."""
        return self._sequence

    def slice(self, first: int, last: int) -> list[JobEvent]:
        """Return the events from one sequence number to another, as far as they are still kept."""
        oldest = self.first_sequence
        positions = range(max(first, oldest) - oldest, min(last, self._sequence) - oldest + 1)
        return [self._events[position] for position in positions]

    def put_back(self, events: Iterable[JobEvent]) -> None:
        """Give a journal that was pickled its events again; what came later never was told."""
        self._events.extend(event for event in events if event.sequence <= self._sequence)

    def __getstate__(self) -> dict[str, Any]:
        # Events are many and never change: whoever stores a journal stores them apart.
        return self.__dict__ | {"_events": deque(maxlen=_KEPT_EVENTS)}

    @property
    def unread(self) -> int:
        """How many events no reader has taken yet."""
        return self._sequence - self.read_up_to

    @property
    def first_sequence(self) -> int:
        """Sequence number of the oldest event that is still kept."""
        return self._sequence - len(self._events) + 1

    def state(self, state: JobState, reason: str) -> None:
        """Enter a change of the job's state."""
        self._add(StateEvent(**self._stamp(), state=state, reason=reason))

    def group(self, group_id: int, state: GroupState, reason: str) -> None:
        """Enter a change of a partition group's state."""
        self._add(GroupEvent(**self._stamp(), group_id=group_id, state=state, reason=reason))

    def generation(self, generation: GenerationRecord) -> None:
        """Enter a generation that was announced or entered."""
        self._add(GenerationEvent(**self._stamp(), generation=generation))

    def scale(self, wanted: int, reason: str, change: GroupsChange) -> None:
        """Enter a change of the wanted number of groups, or of its bounds."""
        bounds = {"minimum": change.minimum, "maximum": change.maximum}
        self._add(ScaleEvent(**self._stamp(), wanted=wanted, reason=reason, **bounds))

    def checkpoint(self, step: int, path: str, error: str) -> None:
        """Enter a checkpoint that was written or failed; two groups may tell of one failure."""
        if error and self._last_failure == (step, error):
            return
        self._last_failure = (step, error)
        if not error:
            self.last_checkpoint = step
        self._add(CheckpointEvent(**self._stamp(), step=step, path=path, error=error))

    def regroup(self, reason: str, change: Regrouped) -> None:
        """Enter what a change of membership took."""
        self._add(
            RegroupEvent(
                **self._stamp(),
                generation=change.generation,
                reason=reason,
                step=change.step,
                phases=change.phases,
                kept=change.kept,
                overtook=list(change.overtook),
            )
        )

    def step(self, record: StepRecord, took_s: float) -> None:
        """Enter a committed step."""
        self._recent.append(record)
        self._took_s.append(took_s)
        self._add(StepEvent(**self._stamp(), record=record))

    @property
    def last_step(self) -> StepRecord | None:
        """The newest committed step."""
        return self._recent[-1] if self._recent else None

    def foretold_step_s(self, num_groups: int) -> float:
        """Return how long a step takes with so many groups, by the last ones; 0 before the first.

        That is without pauses between steps. Where there are fewer than there were each computes
        more. Where there are more, some may have no share yet, and a step is taken to be no
        shorter.
        """
        times_s = [
            took_s * max(1.0, step.num_groups / max(1, num_groups))
            for took_s, step in zip(self._took_s, self._recent, strict=True)
        ]
        return median(times_s) if times_s else 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Median rate of the last steps of the newest generation, its first step left out.

        The first step of a generation contains the change itself.
        """
        if not self._recent:
            return None
        newest = self._recent[-1].generation
        rates = [step.tokens_per_s for step in self._recent if step.generation == newest]
        return median(rates[1:] or rates)

    async def after(self, sequence: int, timeout_s: float) -> list[JobEvent]:
        """Return the events after `sequence`; wait for one up to the time limit."""
        self.read_up_to = max(self.read_up_to, sequence)
        if sequence >= self._sequence:
            await self._bell.wait(timeout_s)
        return self.slice(sequence + 1, self._sequence)

    def _stamp(self) -> dict[str, Any]:
        return {"sequence": self._sequence + 1, "time": time.time()}

    def _add(self, event: JobEvent) -> None:
        self._sequence += 1
        self._events.append(event)
        self._bell.ring()
