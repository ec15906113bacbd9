"""Takes in how jobs ended, or were paused, while no service listened.

Their supervisors leave their journals and last status with the cluster. So a history has no gap
where the service was down, and a job is known that both began and ended in that time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Set

from mics_core.spec.last_words import LastWords
from service.gateway import ClusterGateway
from service.store import DELETED_REMEMBERED_S, Store
from service.watchers import WatcherHub

__all__ = ["UnheardEnds"]

_LOG = logging.getLogger(__name__)

_ADOPTED_WITHIN_S = DELETED_REMEMBERED_S / 2
"""Well below the time in which it is known that a job was deleted: it must not come back."""


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
        self._ended: dict[str, float] = {}
        self._known: set[str] = set()

    async def look(self, live: Set[str]) -> None:
        """See which jobs left last words, and add those that nobody has told this service of.

        Args:
            live: Jobs whose supervisors are alive; what such a job left is of an earlier pause.

        Raises:
            ClusterError: The cluster does not answer.
        """
        oldest = self._clock() - _ADOPTED_WITHIN_S
        self._ended = await self._gateway.ended_jobs()
        self._known &= self._ended.keys()
        for job_id in self._ended.keys() - live - self._known:
            if self._ended[job_id] > oldest and not await asyncio.to_thread(
                self._store.has_job, job_id
            ):
                await self._adopt(job_id)
            self._known.add(job_id)

    async def take_in(self, job_id: str) -> bool:
        """Take in what a known job left behind; return whether that was news.

        Raises:
            ClusterError: The cluster does not answer.
        """
        if job_id not in self._ended:
            return False
        words = await self._gateway.last_words(job_id)
        return words is not None and await self._keep(job_id, words)

    async def _adopt(self, job_id: str) -> None:
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
