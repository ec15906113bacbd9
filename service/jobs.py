"""What can be done with jobs: submit, list, scale, cancel. The routes translate HTTP to this."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence

from mics_core.errors import ClusterError, JobConflictError, JobNotFoundError, ScaleError
from mics_core.spec.checks import check_files
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobState, JobStatus
from service.gateway import ClusterGateway
from service.schemas import JobDetail, JobList, Throughput
from service.settings import Settings
from service.store import Store

__all__ = ["Jobs", "new_job_id"]

_LOG = logging.getLogger(__name__)

_RETRY_S = 0.2


class Jobs:
    """The jobs of one service.

    Args:
        gateway: The cluster.
        store: Where the jobs are kept.
        settings: The patiences.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        gateway: ClusterGateway,
        store: Store,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ):
        self._gateway = gateway
        self._store = store
        self._settings = settings
        self._clock = clock

    async def check(self, spec: JobSpec) -> JobSpec:
        """Make all checks that a submission makes, and start nothing.

        Raises:
            SpecificationError: Names every broken rule.
            ClusterError: The cluster cannot be asked whether it holds the layout.
        """
        await asyncio.to_thread(check_files, spec)
        await self._gateway.check_layout(spec)
        return spec

    async def submit(self, spec: JobSpec) -> JobDetail:
        """Start a job.

        Raises:
            SpecificationError: A rule is broken; nothing was started.
            ClusterError: The cluster does not take it; nothing is left of it.
        """
        await self.check(spec)
        job_id = new_job_id(spec.name)
        # Before the cluster knows it, so that no job runs which the list does not show.
        await asyncio.to_thread(
            self._store.add_job,
            job_id,
            spec,
            source="rest",
            created=self._clock(),
            reason="It was submitted; Ray is starting its driver.",
        )
        try:
            await self._gateway.submit(job_id, spec)
        except ClusterError:
            # An answer that came too late may hide a job that was taken.
            with contextlib.suppress(ClusterError):
                await self._gateway.stop_driver(job_id)
            await asyncio.to_thread(self._store.remove_job, job_id)
            raise
        _LOG.info("job %s was submitted", job_id)
        return await self.job(job_id)

    async def list(self, states: Sequence[JobState], limit: int) -> JobList:
        """Return the jobs, newest first."""
        found = await asyncio.to_thread(self._store.list_jobs, states=states, limit=limit)
        return JobList(jobs=found)

    async def job(self, job_id: str) -> JobDetail:
        """Return everything about one job.

        Raises:
            JobNotFoundError: It is not known.
        """
        return await asyncio.to_thread(self._store.job, job_id)

    async def throughput(self, job_id: str, limit: int) -> Throughput:
        """Return the newest steps of a job.

        Raises:
            JobNotFoundError: It is not known.
        """
        job = await self.job(job_id)
        records = await asyncio.to_thread(self._store.newest_steps, job_id, limit)
        return Throughput(job_id=job_id, tokens_per_s=job.tokens_per_s, records=records)

    async def scale(self, job_id: str, wanted: int) -> JobDetail:
        """Change the wanted number of partition groups of a job.

        A job that is just starting is waited for, a few seconds.

        Raises:
            JobNotFoundError: It is not known.
            ScaleError: The number is outside the job's bounds.
            JobConflictError: It has ended, or cannot be told yet.
        """
        job = await self.job(job_id)
        _require_open(job, "scaled")
        groups = job.spec.groups
        if not groups.minimum <= wanted <= groups.upper_bound:
            raise ScaleError(
                f"{wanted} groups are outside the bounds of job {job_id}, which are"
                f" {groups.minimum} to {groups.upper_bound}.",
                remedy="Ask for a number inside them; groups.minimum and groups.maximum of the"
                " specification set them.",
                field="groups",
            )
        status = await self._scale_when_up(job_id, wanted)
        return await self._keep(job_id, status)

    async def cancel(self, job_id: str) -> JobDetail:
        """Have a job stop at its next step boundary, or never start.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It has ended, or is being cancelled already.
        """
        _require_open(await self.job(job_id), "cancelled")
        try:
            return await self._keep(job_id, await self._gateway.cancel(job_id))
        except JobNotFoundError:
            pass  # No supervisor: only the driver can be stopped.
        if not await asyncio.to_thread(self._store.request_cancel, job_id):
            raise JobConflictError(
                f"Job {job_id} is being cancelled already.", remedy="Wait for its end."
            )
        try:
            await self._gateway.stop_driver(job_id)
        except ClusterError:
            await asyncio.to_thread(self._store.withdraw_cancel, job_id)
            raise
        return await self.job(job_id)

    async def _scale_when_up(self, job_id: str, wanted: int) -> JobStatus:
        deadline = self._clock() + self._settings.hold_s
        while True:
            try:
                return await self._gateway.scale(job_id, wanted)
            except JobNotFoundError:
                job = await self.job(job_id)
                _require_open(job, "scaled")
                if self._clock() >= deadline:
                    raise JobConflictError(
                        f"Job {job_id} is {job.state.value} and has no supervisor to scale it.",
                        remedy="Try again when it is running; GET the job for its state.",
                    ) from None
            await asyncio.sleep(_RETRY_S)

    async def _keep(self, job_id: str, status: JobStatus) -> JobDetail:
        await asyncio.to_thread(self._store.save_status, job_id, status)
        return await self.job(job_id)


def new_job_id(name: str) -> str:
    """Return an id that people recognise and nobody else has: `slug-of-the-name-1a2b3c4d`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "job"
    return f"{slug}-{secrets.token_hex(4)}"


def _require_open(job: JobDetail, participle: str) -> None:
    if job.state.is_final:
        raise JobConflictError(
            f"Job {job.job_id} is {job.state.value} and cannot be {participle}: {job.reason}",
            remedy="Submit it again as a new job.",
        )
