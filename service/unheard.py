"""Takes in how jobs ended, or were paused, while no service listened.

Their supervisors leave their journals and last status with the cluster. So a history has no gap
where the service was down, and a job is known that both began and ended in that time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Set

from mics_core.spec.last_words import EndedJob, LastWords
from service.gateway import ClusterGateway
from service.store import DELETED_REMEMBERED_S, Store
from service.watchers import WatcherHub

__all__ = ["UnheardEnds"]

_LOG = logging.getLogger(__name__)

_ADOPTED_WITHIN_S = DELETED_REMEMBERED_S / 2
"""Well below the time in which it is known that a job was deleted: it must not come back."""

_ATTEMPTS = 3
"""How often it is tried to take in what a job left; then its end is told without."""


class UnheardEnds:
    """Last words of jobs, and what the store has of them.

    Args:
        gateway: The cluster.
        store: Where the jobs are kept.
        hub: Who else wants the events.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        gateway: ClusterGateway,
        store: Store,
        hub: WatcherHub,
        clock: Callable[[], float] = time.time,
    ):
        self._gateway = gateway
        self._store = store
        self._hub = hub
        self._clock = clock
        self._ended: dict[str, EndedJob] = {}
        self._known: set[str] = set()
        self._failures: Counter[tuple[str, EndedJob]] = Counter()
        self._adoption: asyncio.Task[None] | None = None

    async def look(self, live: Set[str]) -> None:
        """See which jobs left last words, and begin to add those that this service never knew.

        Args:
            live: Jobs whose supervisors are alive; what such a job left is of an earlier pause.

        Raises:
            ClusterError: The cluster does not answer.
        """
        self._ended = await self._gateway.ended_jobs()
        self._known &= self._ended.keys()
        if self._adoption is None or self._adoption.done():
            strangers = [
                job_id
                for job_id in self._ended
                if job_id not in self._known | live and self._may_try(job_id)
            ]
            if strangers:
                # Not waited for: histories may be long, and the living jobs are to be followed.
                self._adoption = asyncio.create_task(self._adopt_all(strangers), name="adopt-ended")

    async def stop(self) -> None:
        """End what is under way; whoever looks next goes on with it."""
        if self._adoption is not None:
            self._adoption.cancel()
            await asyncio.gather(self._adoption, return_exceptions=True)

    async def take_in(self, job_id: str) -> bool:
        """Take in what a known job left behind; return whether that was news.

        Raises:
            ClusterError: The cluster does not answer.
        """
        ended = self._ended.get(job_id)
        if ended is None or not self._may_try(job_id):
            return False
        # Nothing is read to see that it is old, such as words of a pause from which a job goes on.
        if ended.last_sequence <= await asyncio.to_thread(self._store.last_sequence, job_id):
            return False
        try:
            words = await self._gateway.last_words(job_id)
            if words is not None and await self._keep(job_id, words):
                return True
        except Exception:
            self._note_failure(job_id)
            raise
        self._note_failure(job_id)
        return False

    def _may_try(self, job_id: str) -> bool:
        return self._failures[job_id, self._ended[job_id]] < _ATTEMPTS

    def _note_failure(self, job_id: str) -> None:
        if job_id in self._ended:
            self._failures[job_id, self._ended[job_id]] += 1

    async def _adopt_all(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            try:
                await self._adopt(job_id)
            except Exception:
                # One that cannot be taken in stands in nobody's way.
                self._note_failure(job_id)
                _LOG.exception("job %s, which ended unheard, could not be added", job_id)
            else:
                self._known.add(job_id)

    async def _adopt(self, job_id: str) -> None:
        if await asyncio.to_thread(self._store.has_job, job_id):
            return
        ended = self._ended.get(job_id)
        if ended is None or ended.time < self._clock() - _ADOPTED_WITHIN_S:
            return
        words = await self._gateway.last_words(job_id)
        if words is None:
            return
        await asyncio.to_thread(
            self._store.add_job,
            job_id,
            words.spec,
            source="ray",
            created=words.status.created,
            reason=words.status.reason,
        )
        await self._keep(job_id, words)
        _LOG.info("job %s began and ended unheard", job_id)

    async def _keep(self, job_id: str, words: LastWords) -> bool:
        known = await asyncio.to_thread(self._store.last_sequence, job_id)
        if not words.events or words.events[-1].sequence <= known:
            return False
        # First: the events close the job, and nobody would look after its status any more.
        await asyncio.to_thread(self._store.save_status, job_id, words.status)
        fresh = await asyncio.to_thread(self._store.append_events, job_id, words.events)
        self._hub.publish(job_id, fresh)
        if not fresh:  # another service was quicker, but its watchers are not those of this one
            self._hub.note_stored(job_id, words.events[-1].sequence)
        return True
