"""What a supervisor must not forget, kept where Ray's head keeps its own tables.

[Note: a supervisor that is killed]
Workers train on without a supervisor, so only its memory is at stake. Whatever it tells anybody, it
has stored before: a worker learns of a generation, a watcher of an event, and the sender of a
report that it was heard, when a supervisor that is started anew would know it too. Reports that
were not answered are sent again. Stores are shared by all who wait at the same time, so their
number does not grow with the workers; a step waits for none. A head that does not answer is waited
for once and for a few seconds: the run is worth more than its record, which is made good once the
head is back.

[Note: a supervisor that has ended]
Ray starts a supervisor anew until it has heard that it is not to, which a supervisor can ask for
only as the last thing that it does. So in the place of its record it leaves behind that the job has
ended: one that is started anew all the same would find no record, and begin a finished job again. A
job that is resumed, or started again under its id, has another supervisor, which does not read
this one's.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.experimental import internal_kv

from mics_core.cluster.journal import Journal
from mics_core.spec.status import JobEvent

__all__ = ["Record"]

logger = logging.getLogger(__name__)

_SPACE = b"mics"
_SEGMENT = 32
"""Events that are stored together; the newest few are stored again with each that is added."""
_STORED_WITHIN_S = 5.0


class Record:
    """The record of one job.

    Args:
        job_id: The job.
        supervisor_id: The supervisor, the same when it is started anew.
        memory: Returns what is to be remembered, which must pickle, and the journal in it.
        after: Sequence number that the job's first event follows.
    """

    def __init__(
        self,
        job_id: str,
        supervisor_id: str,
        memory: Callable[[], tuple[Any, Journal]],
        after: int = 0,
    ):
        self._of_job = f"{job_id}/".encode()
        self._prefix = f"{job_id}/{supervisor_id}/"
        self._memory = memory
        self._changes = self._stored = 0
        self._stored_sequence, self._first_segment = after, after // _SEGMENT
        self._writing: asyncio.Task[None] | None = None
        # One, so that a store that comes late comes before the next.
        self._thread = ThreadPoolExecutor(1, "mics-record")
        self._late: asyncio.Future[None] | None = None

    def load(self) -> tuple[Any, list[JobEvent]] | None:
        """Return what was remembered and the journal's events; none if nothing ever was."""
        memory = internal_kv._internal_kv_get(self._key("memory"), namespace=_SPACE)
        if memory is None:
            return None
        keys = internal_kv._internal_kv_list(self._key("events/"), namespace=_SPACE)
        events: list[JobEvent] = []
        for key in sorted(keys):
            events += pickle.loads(internal_kv._internal_kv_get(key, namespace=_SPACE))
        if events:
            self._stored_sequence = events[-1].sequence
            self._first_segment = events[0].sequence // _SEGMENT
        return pickle.loads(memory), events

    def has_ended(self) -> bool:
        """Whether this supervisor has ended its job before, see the note."""
        ended = internal_kv._internal_kv_get(self._key("ended"), namespace=_SPACE)
        return ended is not None

    def touch(self) -> None:
        """Note that something changed that must be stored before anybody learns of it."""
        self._changes += 1

    async def settle(self) -> None:
        """Wait until everything that has changed so far is stored."""
        wanted = self._changes
        while self._stored < wanted:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write())
            await asyncio.shield(self._writing)

    async def end(self) -> None:
        """Forget all of the job but that it has ended, see [Note: a supervisor that has ended]."""
        # After all stores, on their thread: one that comes late must not bring the record back.
        await asyncio.get_running_loop().run_in_executor(self._thread, self._end)

    def _end(self) -> None:
        ended = self._key("ended")
        internal_kv._internal_kv_put(ended, b"1", overwrite=True, namespace=_SPACE)
        for key in internal_kv._internal_kv_list(self._of_job, namespace=_SPACE):
            if key != ended:
                internal_kv._internal_kv_del(key, namespace=_SPACE)

    async def _write(self) -> None:
        changes = self._changes
        try:
            if self._late is not None and not self._late.done():
                return
            memory, journal = self._memory()
            last = journal.last_sequence
            segments = range(self._stored_sequence // _SEGMENT, -(-last // _SEGMENT))
            values = {
                self._segment(number): pickle.dumps(
                    journal.slice(number * _SEGMENT + 1, (number + 1) * _SEGMENT)
                )
                for number in segments
            }
            # Last: what it says of the journal must be there.
            values[self._key("memory")] = pickle.dumps(memory)
            outdated = [
                self._segment(number)
                for number in range(self._first_segment, journal.first_sequence // _SEGMENT)
            ]
            await self._put(values, outdated)
            self._stored_sequence = last
            self._first_segment += len(outdated)
        except Exception:
            # Ray's head may be away for a while.
            logger.exception("the supervisor's memory could not be stored")
        finally:
            self._stored = changes
            self._writing = None

    async def _put(self, values: dict[bytes, bytes], outdated: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        stored = loop.run_in_executor(self._thread, _put, values, outdated)
        await asyncio.wait([stored], timeout=_STORED_WITHIN_S)
        if not stored.done():
            self._late = stored
            stored.add_done_callback(lambda late: late.cancelled() or late.exception())
            raise TimeoutError(f"Ray's head did not answer in {_STORED_WITHIN_S:g} s")
        stored.result()

    def _segment(self, number: int) -> bytes:
        return self._key(f"events/{number:012}")

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}{name}".encode()


def _put(values: dict[bytes, bytes], outdated: list[bytes]) -> None:
    for key, value in values.items():
        internal_kv._internal_kv_put(key, value, overwrite=True, namespace=_SPACE)
    for key in outdated:
        internal_kv._internal_kv_del(key, namespace=_SPACE)
