"""Notices what other services have stored, where several share a database."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from service.store import Store
from service.watchers import WatcherHub

__all__ = ["Tail"]

_LOG = logging.getLogger(__name__)


class Tail:
    """A task that asks the database for the newest events of the jobs that are watched here.

    One question for all of them, and none while nobody watches. The watchers of a job that this
    service follows itself have its events sooner.

    Args:
        store: Where the events are.
        hub: The watchers.
        interval_s: Pause between two questions.
    """

    def __init__(self, store: Store, hub: WatcherHub, interval_s: float):
        self._store = store
        self._hub = hub
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if the database is one that can be shared."""
        if self._store.database.is_shared:
            self._task = asyncio.create_task(self._run(), name="tail")

    async def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if not (watched := self._hub.watched()):
                continue
            try:
                stored = await asyncio.to_thread(self._store.last_sequences, watched)
            except Exception:
                _LOG.exception("the database cannot be asked for new events; it is tried again")
                continue
            for job_id, last_sequence in stored.items():
                self._hub.note_stored(job_id, last_sequence)
