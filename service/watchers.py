"""Hands the events of live jobs to any number of watchers, none of which can slow the others.

Each watcher has a queue of bounded length. One that falls behind loses its queue and is told so; it
then reads what it missed from the store, which has every event before any watcher has it.

An event is encoded once for all of them, and handed out to some at a time. While a request waits
for its answer, there is a pause after each few: hundreds of watchers of a step can wait a moment
longer, and whoever asked should not.
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

_PAUSE_S = 0.001
"""About as long as it takes to write to those that got an event at once."""
_LONGEST_S = 0.1
"""How long an event is on its way before requests have to wait for it again."""


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


@dataclass
class _HandOut:
    """An event, or some, on the way to the watchers that do not have them yet.

    Args:
        watchers: These.
        new: The events.
        began_s: When they were published, in the loop's time.
    """

    watchers: deque[Watcher]
    new: Sequence[Told]
    began_s: float


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
        self._hand_outs: deque[_HandOut] = deque()
        self._gives_way: Callable[[], bool] = lambda: False

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
            is_first = not self._hand_outs
            self._hand_outs.append(
                _HandOut(
                    deque(self._watchers[job_id]),
                    [Told(event) for event in new],
                    asyncio.get_running_loop().time(),
                )
            )
            if is_first:
                self._hand_out()

    def give_way(self, others_wait: Callable[[], bool]) -> None:
        """Have pauses made in handing out events while `others_wait` says so."""
        self._gives_way = others_wait

    def _hand_out(self) -> None:
        """Put events into some queues, oldest first: a gap would have a watcher read the store."""
        loop, oldest = asyncio.get_running_loop(), self._hand_outs[0]
        for _ in range(min(_AT_ONCE, len(oldest.watchers))):
            oldest.watchers.popleft().put(oldest.new)
        if not oldest.watchers:
            self._hand_outs.popleft()
        if not self._hand_outs:
            return
        is_late = len(self._hand_outs) > 1 or loop.time() - self._hand_outs[0].began_s > _LONGEST_S
        if self._gives_way() and not is_late:
            loop.call_later(_PAUSE_S, self._hand_out)
        else:
            loop.call_soon(self._hand_out)

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
