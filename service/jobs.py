"""What can be read of jobs, and the deletion of their records. Routes translate HTTP to this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from mics_core.spec.status import CheckpointEvent
from service.listing import JobFilter, Position
from service.schemas import (
    Checkpoint,
    CheckpointList,
    EventList,
    JobDetail,
    JobList,
    PlacedWorker,
    Placement,
    Throughput,
)
from service.store import Store

__all__ = ["Jobs"]


class Jobs:
    """The jobs of one service, as it has stored them.

    Args:
        store: Where they are kept.
        clock: Seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time):
        self._store = store
        self._clock = clock

    async def list(self, wanted: JobFilter) -> JobList:
        """Return a page of the jobs, newest first."""
        assert wanted.limit is not None, "a page has a length"
        one_more = replace(wanted, limit=wanted.limit + 1)
        found = await asyncio.to_thread(self._store.list_jobs, one_more)
        page = found[: wanted.limit]
        has_more = len(found) > len(page)
        last = Position(page[-1].created, page[-1].job_id) if has_more else None
        return JobList(jobs=page, next_cursor=last.cursor if last is not None else None)

    async def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: It is not known.
        """
        return await asyncio.to_thread(self._store.job, job_id)

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It has not ended.
        """
        await asyncio.to_thread(self._store.delete_job, job_id, self._clock())

    async def throughput(
        self, job_id: str, points: int, first_step: int | None, last_step: int | None
    ) -> Throughput:
        """Return the history of a job's steps, at most at so many points.

        Raises:
            JobNotFoundError: It is not known.
        """
        return await asyncio.to_thread(
            self._store.throughput, job_id, points, first_step, last_step, self._clock()
        )

    async def events(
        self, job_id: str, after: int, limit: int, kinds: Collection[str]
    ) -> EventList:
        """Return events of a job beyond a sequence number.

        Raises:
            JobNotFoundError: It is not known.
        """
        newest = await asyncio.to_thread(self._store.last_sequence, job_id)
        found = await asyncio.to_thread(self._store.events_after, job_id, after, limit, kinds)
        # Events of other kinds were passed over, up to the number that was the last before.
        passed = found[-1].sequence if len(found) == limit else newest
        last = found[-1].sequence if found else 0
        return EventList(events=found, next_after=max(after, passed, last))

    async def checkpoints(self, job_id: str) -> CheckpointList:
        """Return the checkpoints that a job has written or failed to write, oldest first.

        Raises:
            JobNotFoundError: It is not known.
        """
        await asyncio.to_thread(self._store.last_sequence, job_id)
        found = await asyncio.to_thread(self._store.events_of_kind, job_id, "checkpoint")
        return CheckpointList(
            checkpoints=[
                Checkpoint(
                    step=event.step, path=event.path, time=event.time, error=event.error or None
                )
                for event in found
                if isinstance(event, CheckpointEvent)
            ]
        )

    async def placement(self, job_id: str) -> Placement:
        """Return where the workers of a job are.

        Raises:
            JobNotFoundError: It is not known.
        """
        job = await self.job(job_id)
        if job.status is None or job.state.is_at_rest:
            return Placement(generation=job.generation, workers=[])
        workers = [
            PlacedWorker(
                node_id=worker.node_id,
                host=worker.host,
                group_id=group.group_id,
                group_state=group.state,
                rank=worker.rank,
                pid=worker.pid,
                step=worker.step,
            )
            for group in job.status.groups
            if not group.state.is_gone
            for worker in group.workers
        ]
        return Placement(generation=job.generation, workers=workers)
