"""What can be asked of jobs: scale, cancel, pause, resume. The routes translate HTTP to this."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from mics_core.errors import ClusterError, JobConflictError, JobNotFoundError
from mics_core.spec.status import JobState, JobStatus
from service.gateway import ClusterGateway, GroupsChange
from service.redaction import without_paths
from service.schemas import JobDetail
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.watchers import WatcherHub

__all__ = ["Control"]

_LOG = logging.getLogger(__name__)

_RETRY_S = 0.2


class Control:
    """Steers the jobs of one service.

    Args:
        gateway: The cluster.
        store: Where the jobs are kept.
        hub: Who is told of events that the service itself makes.
        submissions: Starts drivers.
        settings: The patiences.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        gateway: ClusterGateway,
        store: Store,
        hub: WatcherHub,
        submissions: Submissions,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ):
        self._gateway = gateway
        self._store = store
        self._hub = hub
        self._submissions = submissions
        self._settings = settings
        self._clock = clock

    async def scale(self, job_id: str, change: GroupsChange) -> JobDetail:
        """Change the wanted number of partition groups of a job, and its bounds.

        A job that is just starting is waited for, a few seconds.

        Raises:
            JobNotFoundError: It is not known.
            ScaleError: The number is outside the job's bounds, or they cannot be.
            JobConflictError: It has ended, is paused, or cannot be told yet.
        """
        job = await self._job(job_id)
        _require_live(job, "scaled")
        if isinstance(job.spec.partition_size, int):
            known = job.spec.groups
            if job.status is not None:
                bounds = {
                    "minimum": job.status.minimum_groups,
                    "maximum": job.status.maximum_groups,
                }
                known = known.model_copy(update=bounds)
            spec = job.spec.model_copy(update={"groups": known})
            change.applied_to(spec, job.wanted_groups, job.spec.partition_size)
        status = await self._when_up(
            job_id, "scale", "scaled", lambda: self._gateway.scale(job_id, change)
        )
        return await self._keep(job_id, status)

    async def cancel(self, job_id: str) -> JobDetail:
        """Have a job stop at its next step boundary, or never start.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It has ended, or is being cancelled already.
        """
        job = await self._job(job_id)
        _require_open(job, "cancelled")
        if job.state is JobState.PAUSED:
            await self._close(job_id, JobState.CANCELLED, "It was cancelled while it was paused.")
            return await self._job(job_id)
        try:
            return await self._keep(job_id, await self._gateway.cancel(job_id))
        except JobNotFoundError:
            pass  # No supervisor: only the driver can be stopped.
        if not await asyncio.to_thread(self._store.request_cancel, job_id):
            raise JobConflictError(
                f"Job {job_id} is being cancelled already.", remedy="Wait for its end."
            )
        try:
            open_job = await asyncio.to_thread(self._store.open_job, job_id)
            if open_job is not None:
                await self._gateway.stop_driver(open_job.driver_id)
        except ClusterError:
            await asyncio.to_thread(self._store.withdraw_cancel, job_id)
            raise
        return await self._job(job_id)

    async def pause(self, job_id: str) -> JobDetail:
        """Have a job write a checkpoint at its next step boundary and give its nodes back.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It writes no checkpoints, has ended, or cannot be told yet.
        """
        job = await self._job(job_id)
        _require_live(job, "paused")
        if job.spec.checkpoint.directory is None:
            raise JobConflictError(
                f"Job {job_id} cannot be paused: it writes no checkpoints, so it could not go on.",
                remedy="Submit it with checkpoint.directory set to a folder that all nodes see.",
                field="checkpoint.directory",
            )
        status = await self._when_up(job_id, "pause", "paused", lambda: self._gateway.pause(job_id))
        return await self._keep(job_id, status)

    async def resume(self, job_id: str) -> JobDetail:
        """Have a paused job go on from its newest checkpoint, with a new driver.

        Raises:
            JobNotFoundError: It is not known.
            JobConflictError: It is not paused.
            ClusterError: The cluster cannot be asked; it stays paused. Where it was asked, and may
                have started the driver without saying so, the job is pending, as after a
                submission, and its hand-over goes on.
        """
        with self._submissions.kept(job_id):
            await self._hand_over_again(job_id)
        _LOG.info("job %s was resumed", job_id)
        return await self._job(job_id)

    async def _hand_over_again(self, job_id: str) -> None:
        reason = "It is resumed; Ray is starting its driver."
        told = await asyncio.to_thread(self._store.resume_job, job_id, self._clock(), reason)
        self._hub.publish(job_id, told)
        resumed = await asyncio.to_thread(self._store.open_job, job_id)
        try:
            await self._submissions.complete(job_id)
        except ClusterError as error:
            why = f"It could not be resumed: {without_paths(error.message)}"
            if resumed is not None and await self._submissions.take_back(
                job_id, resumed.submission, why
            ):
                raise
            _LOG.warning("the driver of the resumed job %s may come up: %s", job_id, error)

    async def _when_up(
        self, job_id: str, verb: str, participle: str, call: Callable[[], Awaitable[JobStatus]]
    ) -> JobStatus:
        deadline = self._clock() + self._settings.hold_s
        while True:
            try:
                return await call()
            except JobNotFoundError:
                job = await self._job(job_id)
                _require_live(job, participle)
                if self._clock() >= deadline:
                    raise JobConflictError(
                        f"Job {job_id} is {job.state.value} and has no supervisor to {verb} it.",
                        remedy="Try again when it is running; GET the job for its state.",
                    ) from None
            await asyncio.sleep(_RETRY_S)

    async def _job(self, job_id: str) -> JobDetail:
        return await asyncio.to_thread(self._store.job, job_id)

    async def _keep(self, job_id: str, status: JobStatus) -> JobDetail:
        await asyncio.to_thread(self._store.save_status, job_id, status)
        return await self._job(job_id)

    async def _close(self, job_id: str, state: JobState, reason: str) -> None:
        told = await asyncio.to_thread(
            self._store.close_job, job_id, state, reason, self._clock(), None
        )
        self._hub.publish(job_id, told)


def _require_open(job: JobDetail, participle: str) -> None:
    if job.state.is_final:
        raise JobConflictError(
            f"Job {job.job_id} is {job.state.value} and cannot be {participle}: {job.reason}",
            remedy="Submit it again as a new job.",
        )


def _require_live(job: JobDetail, participle: str) -> None:
    _require_open(job, participle)
    if job.state is JobState.PAUSED:
        raise JobConflictError(
            f"Job {job.job_id} is paused and cannot be {participle}.", remedy="Resume it first."
        )
