"""What the processes of a job write: read once, or followed until the job ends."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

from mics_core.errors import ClusterError
from mics_core.spec.nodes import LogSource
from service.errors import RequestError
from service.gateway import ClusterGateway
from service.store import Store
from service.watchers import WatcherHub, follow_events

__all__ = ["MAXIMUM_LINES", "Logs"]

_LOG = logging.getLogger(__name__)

MAXIMUM_LINES = 10_000
"""Most lines of the past that one request reads."""

_WORKER = re.compile(r"^(\d{1,9})\.(\d{1,9})$")
_QUEUED_LINES = 1000
_LAST_WORDS_S = 1.0
"""What a process wrote last may come after the news that the job has ended."""


@dataclass(slots=True)
class _Opened:
    """Lines of one file, and what each begins with."""

    lines: AsyncGenerator[str]
    prefix: str


class Logs:
    """The logs of the jobs of one service.

    Args:
        gateway: The cluster, where they lie.
        store: The jobs.
        hub: Tells of a job's end.
    """

    def __init__(self, gateway: ClusterGateway, store: Store, hub: WatcherHub):
        self._gateway = gateway
        self._store = store
        self._hub = hub

    @asynccontextmanager
    async def opened(
        self, job_id: str, worker: str | None, tail: int, *, follow: bool
    ) -> AsyncIterator[AsyncIterator[str]]:
        """Give the lines of a job's driver and supervisor, or of one worker.

        What the cluster opened for it is closed with the context, whether or not it was read.

        Args:
            job_id: The job.
            worker: `GROUP.RANK` for one worker, by partition group and rank.
            tail: Lines of the past.
            follow: Whether to go on until the job ends.

        Raises:
            JobNotFoundError: The job is not known.
            RequestError: It has no such worker, or there is no log of it.
            ClusterError: The cluster does not answer.
        """
        sources = await asyncio.to_thread(self._sources, job_id, worker)
        goes_on = follow and await asyncio.to_thread(self._store.open_job, job_id) is not None
        opened: list[_Opened] = []
        async with AsyncExitStack() as stack:
            for prefix, source in sources:
                for lines in await self._gateway.open_logs(source, tail, follow=goes_on):
                    await stack.enter_async_context(aclosing(lines))
                    opened.append(_Opened(lines, prefix))
            if not opened:
                what = "" if worker is None else f" of worker {worker}"
                raise RequestError(
                    404,
                    f"The cluster has no log{what} of job {job_id}.",
                    remedy="Ray keeps logs as long as the node lives; a job that is just starting"
                    " has none yet.",
                    code="log_not_found",
                )
            all_lines = self._followed(job_id, opened) if goes_on else aclosing(_one_by_one(opened))
            # The last to be opened is the first to be closed: it reads from the others.
            yield await stack.enter_async_context(all_lines)

    def _sources(self, job_id: str, worker: str | None) -> list[tuple[str, LogSource]]:
        job = self._store.job(job_id)
        if worker is None:
            driver_id = self._store.driver_id(job_id)
            return [
                ("", LogSource(driver_id=driver_id)),
                ("supervisor: ", LogSource(supervisor_of=job_id)),
            ]
        named = _WORKER.match(worker)
        if named is not None and job.status is not None:
            group_id, rank = int(named[1]), int(named[2])
            for group in job.status.groups:
                for one in group.workers:
                    if (group.group_id, one.rank) == (group_id, rank):
                        return [("", LogSource(node_id=one.node_id, pid=one.pid))]
        raise RequestError(
            404,
            f"Job {job_id} has no worker {worker[:30]!r}.",
            remedy="Name it as GROUP.RANK, such as 0.1; GET the job's placement for those it has.",
            code="worker_not_found",
        )

    @asynccontextmanager
    async def _followed(
        self, job_id: str, opened: Sequence[_Opened]
    ) -> AsyncIterator[AsyncIterator[str]]:
        queue: asyncio.Queue[str | None] = asyncio.Queue(_QUEUED_LINES)
        tasks = [asyncio.create_task(_read_into(queue, one)) for one in opened]
        tasks.append(asyncio.create_task(self._wait_for_end(job_id, queue)))
        try:
            yield _until_none(queue)
        finally:
            # Here and not in what yields lines: an answer that is broken off lets that wait for
            # nothing any more, and a file cannot be closed while a task reads it.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_end(self, job_id: str, queue: asyncio.Queue[str | None]) -> None:
        try:
            last = await asyncio.to_thread(self._store.last_sequence, job_id)
            async for _ in follow_events(self._store, self._hub, job_id, last):
                pass
            await asyncio.sleep(_LAST_WORDS_S)
        except Exception:
            # Nobody would notice the job's end: whoever follows asks again rather than for ever.
            _LOG.exception("the log of job %s is followed no further", job_id)
        await queue.put(None)


async def _until_none(queue: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (line := await queue.get()) is not None:
        yield line


async def _one_by_one(opened: Sequence[_Opened]) -> AsyncGenerator[str]:
    for one in opened:
        async for line in one.lines:
            yield f"{one.prefix}{line}\n"


async def _read_into(queue: asyncio.Queue[str | None], one: _Opened) -> None:
    try:
        async for line in one.lines:
            await queue.put(f"{one.prefix}{line}\n")
    except ClusterError as error:
        _LOG.info("a log cannot be followed any more: %s", error)
