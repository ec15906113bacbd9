"""Hands the events of live jobs to any number of watchers, none of which can slow the others.

Each watcher has a queue of bounded length. One that falls behind loses its queue and is told so; it
then reads what it missed from the store, which has every event before any watcher has it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from mics_core.spec.status import JobEvent, StateEvent
from service.store import Store

__all__ = ["Watcher", "WatcherHub", "follow_events"]

_QUEUE_LENGTH = 256

_PAGE = 500


class Watcher:
    """One reader of a job's events."""

    def __init__(self, queue_length: int):
        self._queue: deque[JobEvent] = deque()
        self._queue_length = queue_length
        self._has_lagged = False
        self._changed = asyncio.Event()

    def put(self, new: Sequence[JobEvent]) -> None:
        """Queue events, or drop the queue if they do not fit."""
        if len(self._queue) + len(new) > self._queue_length:
            self._queue.clear()
            self._has_lagged = True
        elif not self._has_lagged:
            self._queue.extend(new)
        self._changed.set()

    async def take(self) -> list[JobEvent] | None:
        """Wait for events; none says that some were dropped and the store must be read."""
        await self._changed.wait()
        self._changed.clear()
        if self._has_lagged:
            self._has_lagged = False
            return None
        taken = list(self._queue)
        self._queue.clear()
        return taken


class WatcherHub:
    """The watchers of all jobs.

    Args:
        queue_length: Events that a watcher may lag behind before it must read the store.
    """

    def __init__(self, queue_length: int = _QUEUE_LENGTH):
        self._queue_length = queue_length
        self._watchers: dict[str, set[Watcher]] = {}

    @property
    def num_watchers(self) -> int:
        """How many watchers there are."""
        return sum(len(watchers) for watchers in self._watchers.values())

    def publish(self, job_id: str, new: Sequence[JobEvent]) -> None:
        """Give the watchers of a job events that the store has."""
        if new:
            for watcher in self._watchers.get(job_id, ()):
                watcher.put(new)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watcher]:
        """Watch a job as long as the context is open."""
        watcher = Watcher(self._queue_length)
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]


async def follow_events(
    store: Store, hub: WatcherHub, job_id: str, after: int
) -> AsyncIterator[JobEvent]:
    """Yield the events of a job beyond `after`: history, then live, up to its final state.

    No event is left out and none comes twice, whatever happens between the two readings: the
    watcher listens before the store is read, and numbers tell what is known already.
    """
    with hub.watch(job_id) as watcher:
        new: list[JobEvent] | None = None
        while True:
            if new is None:
                # Asked before the reading: an ended job has no event that the reading could miss.
                has_ended = await asyncio.to_thread(store.open_job, job_id) is None
                while page := await asyncio.to_thread(store.events_after, job_id, after, _PAGE):
                    for event in page:
                        yield event
                        after = event.sequence
                        if _is_final(event):
                            return
                if has_ended:
                    return
            for event in new or ():
                if event.sequence > after:
                    yield event
                    after = event.sequence
                    if _is_final(event):
                        return
            new = await watcher.take()


def _is_final(event: JobEvent) -> bool:
    return isinstance(event, StateEvent) and event.state.is_final
