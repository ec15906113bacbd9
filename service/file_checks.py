"""Looks at the files and checkpoints that a job names, whatever they are and however slow.

Storage has no time limits, and users choose what is looked at. So this has threads of its own, few
at a time: stuck ones leave the database, which everything else waits for, the threads it needs.
"""

from __future__ import annotations

import asyncio
import functools

from mics_core.cluster.blocking import in_daemon_thread
from mics_core.spec.checks import check_files
from mics_core.spec.job import JobSpec
from service.errors import RequestError

__all__ = ["FileChecks"]

_AT_A_TIME = 2


class FileChecks:
    """Checks jobs against the file systems that the service sees.

    Args:
        within_s: Longest wait for an answer.
    """

    def __init__(self, within_s: float = 20.0):
        self._within_s = within_s
        self._room = asyncio.Semaphore(_AT_A_TIME)

    async def check(self, spec: JobSpec) -> None:
        """Check that the files are there, and that no other run's checkpoints are.

        Raises:
            SpecificationError: Names each problem.
            RequestError: The storage does not answer.
        """
        try:
            async with asyncio.timeout(self._within_s):
                await self._look(spec)
        except TimeoutError:
            raise RequestError(
                503,
                f"The storage of the job's files did not answer in {self._within_s:g} s.",
                remedy="Check from the service's machine that data.paths, tokenizer.path and"
                " checkpoint.directory can be listed, then submit it again.",
                code="storage_unavailable",
            ) from None

    async def _look(self, spec: JobSpec) -> None:
        await self._room.acquire()
        looking = in_daemon_thread(functools.partial(check_files, spec, by_service=True))
        looking.add_done_callback(self._leave)
        # A thread cannot be stopped: its room is free when it comes back, if nobody waits any more.
        await asyncio.shield(looking)

    def _leave(self, looking: asyncio.Future[None]) -> None:
        looking.exception()  # so that nobody is told that it was not asked for
        self._room.release()
