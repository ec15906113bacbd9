"""Hands the events of live jobs to any number of watchers, none of which can slow the others.

Each watcher has a queue of bounded length. One that falls behind loses its queue and is told so; it
then reads what it missed from the store, which has every event before any watcher has it.

An event is encoded once for all of them, and handed out to some at a time, so that hundreds of
watchers of one step do not keep another request waiting.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from sse_starlette import ServerSentEvent

from mics_core.spec.status import JobEvent, StateEvent
from service.errors import RequestError
from service.store import Store

__all__ = ["Told", "Watcher", "WatcherHub", "follow_events"]

_QUEUE_LENGTH = 256

_PAGE = 100

_AT_ONCE = 8


@dataclass(frozen=True)
class Told:
    """An event as all of its watchers share it."""

    event: JobEvent

    @cached_property
    def message(self) -> bytes:
        """The event as a server-sent one."""
        event = self.event
        return ServerSentEvent(
            event.model_dump_json(), event=event.kind, id=str(event.sequence), sep="\n"
        ).encode()


class Watcher:
    """One reader of a job's events."""

    def __init__(self, queue_length: int):
        self._queue: deque[Told] = deque()
        self._queue_length = queue_length
        self._has_lagged = False
        self._changed = asyncio.Event()

    def put(self, new: Sequence[Told]) -> None:
        """Queue events, or drop the queue if they do not fit."""
        if len(self._queue) + len(new) > self._queue_length:
            self.lag()
        elif not self._has_lagged:
            self._queue.extend(new)
        self._changed.set()

    def lag(self) -> None:
        """Drop the queue: the store has events that nobody will put."""
        self._queue.clear()
        self._has_lagged = True
        self._changed.set()

    async def take(self) -> list[Told] | None:
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
        most: Open streams, of all jobs together.
        most_per_job: Open streams of one job.
    """

    def __init__(
        self,
        queue_length: int = _QUEUE_LENGTH,
        *,
        most: int | None = None,
        most_per_job: int | None = None,
    ):
        self._queue_length = queue_length
        self._most = most
        self._most_per_job = most_per_job
        self._seats: Counter[str] = Counter()
        self._watchers: dict[str, set[Watcher]] = {}
        self._newest: dict[str, int] = {}
        self._listeners: list[Callable[[str, Sequence[JobEvent]], None]] = []

    @property
    def num_watchers(self) -> int:
        """How many watchers there are."""
        return sum(len(watchers) for watchers in self._watchers.values())

    @property
    def num_seats(self) -> int:
        """How many streams are open."""
        return self._seats.total()

    def publish(self, job_id: str, new: Sequence[JobEvent]) -> None:
        """Give the watchers of a job events that the store has."""
        if new:
            for listener in self._listeners:
                listener(job_id, new)
        if new and job_id in self._watchers:
            self._newest[job_id] = max(self._newest[job_id], new[-1].sequence)
            self._hand_out([*self._watchers[job_id]], [Told(event) for event in new])

    def _hand_out(self, watchers: list[Watcher], new: Sequence[Told]) -> None:
        """Put events into the queues; a watcher that gets them out of order reads the store."""
        for watcher in watchers[:_AT_ONCE]:
            watcher.put(new)
        if rest := watchers[_AT_ONCE:]:
            asyncio.get_running_loop().call_soon(self._hand_out, rest, new)

    def watched(self) -> list[str]:
        """Return the jobs that somebody watches."""
        return list(self._watchers)

    def note_stored(self, job_id: str, last_sequence: int) -> None:
        """Have the watchers of a job read the store, if it has events that were not published."""
        if job_id in self._watchers and last_sequence > self._newest[job_id]:
            self._newest[job_id] = last_sequence
            for watcher in self._watchers[job_id]:
                watcher.lag()

    def listen(self, listener: Callable[[str, Sequence[JobEvent]], None]) -> None:
        """Have `listener` called with all events of all jobs; it must not wait for anything."""
        self._listeners.append(listener)

    @contextmanager
    def seat(self, job_id: str) -> Iterator[None]:
        """Take one of the streams that may be open at a time, as long as the context is open.

        Raises:
            RequestError: All are taken.
        """
        if self._most_per_job is not None and self._seats[job_id] >= self._most_per_job:
            raise RequestError(
                429,
                f"Job {job_id} has {self._most_per_job} streams, as many as one job may have.",
                remedy="Close one, ask for the list of events instead, or have"
                " MICS_WATCHERS_PER_JOB raised.",
                code="too_many_watchers",
            )
        if self._most is not None and self._seats.total() >= self._most:
            raise RequestError(
                503,
                f"The service has {self._most} open streams, as many as it may have.",
                remedy="Try again later, ask for the list of events instead, or have MICS_WATCHERS"
                " raised.",
                code="too_many_watchers",
            )
        self._seats[job_id] += 1
        try:
            yield
        finally:
            self._seats[job_id] -= 1
            if not self._seats[job_id]:
                del self._seats[job_id]

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watcher]:
        """Watch a job as long as the context is open."""
        watcher = Watcher(self._queue_length)
        self._watchers.setdefault(job_id, set()).add(watcher)
        self._newest.setdefault(job_id, 0)
        try:
            yield watcher
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id], self._newest[job_id]


async def follow_events(
    store: Store, hub: WatcherHub, job_id: str, after: int
) -> AsyncIterator[Told]:
    """Yield the events of a job beyond `after`: history, then live, up to its final state.

    No event is left out and none comes twice, whatever happens between the two readings: the
    watcher listens before the store is read, and numbers tell what is known already, and what
    another service has stored in between.
    """
    with hub.watch(job_id) as watcher:
        new: list[Told] | None = None
        while True:
            if new is None:
                # Asked before the reading: an ended job has no event that the reading could miss.
                has_ended = await asyncio.to_thread(store.open_job, job_id) is None
                while page := await asyncio.to_thread(store.events_after, job_id, after, _PAGE):
                    for event in page:
                        yield Told(event)
                        after = event.sequence
                        if _is_final(event):
                            return
                if has_ended:
                    return
            is_whole = True
            for told in new or ():
                event = told.event
                if event.sequence > after + 1:
                    is_whole = False
                    break
                if event.sequence > after:
                    yield told
                    after = event.sequence
                    if _is_final(event):
                        return
            new = await watcher.take() if is_whole else None


def _is_final(event: JobEvent) -> bool:
    return isinstance(event, StateEvent) and event.state.is_final
