"""Keeps the store true to the cluster: finds live jobs, follows each, closes those that are gone.

One task looks for supervisors every second; one task for each live job asks it for new events,
stores them, and passes them to the watchers. A job whose supervisor is gone has left its last words
(`service.unheard`), or is decided by `service.outcome`. Nothing here holds state that a restart of
the service would miss: the tasks go on from the last sequence number in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from mics_core.errors import ClusterError, JobConflictError, JobNotFoundError
from mics_core.spec.status import JobState, StateEvent
from service.gateway import ClusterGateway
from service.outcome import Patience, closed_status, decide_outcome
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.unheard import UnheardEnds
from service.watchers import WatcherHub

__all__ = ["Followers"]

_LOG = logging.getLogger(__name__)

_FIRST_CONNECTION_S = 10.0

# Enough that a slow answer about one job holds up no other, few enough for Ray's Jobs API.
_RECONCILED_AT_ONCE = 4


class Followers:
    """The tasks that follow all live jobs.

    Args:
        gateway: The cluster.
        store: Where the jobs are kept.
        hub: Who else wants the events.
        submissions: Hands over what another service left behind.
        settings: The intervals and patiences.
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
        self._unheard = UnheardEnds(gateway, store, hub, clock)
        self._patience = Patience(settings.start_patience_s, settings.lost_after_s)
        self._discovery: asyncio.Task[None] | None = None
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._missing_since: dict[str, float] = {}
        self._outlived: set[str] = set()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_RECONCILED_AT_ONCE)
        self._first_attempt = asyncio.Event()
        self._is_reachable = True

    async def start(self) -> None:
        """Begin to follow; returns after the first attempt to reach the cluster, or a few seconds.

        A cluster that is not there is no error: it is looked for again and again.
        """
        self._discovery = asyncio.create_task(self._discover(), name="discover-jobs")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first_attempt.wait(), _FIRST_CONNECTION_S)

    async def stop(self) -> None:
        """End all tasks. The jobs themselves go on."""
        tasks = [*self._followers.values(), *self._ending.values()]
        if self._discovery is not None:
            tasks.append(self._discovery)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._unheard.stop()

    async def _discover(self) -> None:
        while True:
            try:
                await self._gateway.connect()
                self._first_attempt.set()
                await self._look()
                self._note_reachable(None)
            except ClusterError as error:
                self._note_reachable(error)
            except Exception:
                _LOG.exception("looking for jobs failed; it is tried again")
            self._first_attempt.set()
            await asyncio.sleep(self._settings.discovery_interval_s)

    def _note_reachable(self, error: ClusterError | None) -> None:
        """Log a change only: an absent cluster would otherwise fill the log."""
        if error is not None and self._is_reachable:
            _LOG.warning("the cluster cannot be reached: %s", error)
        elif error is None and not self._is_reachable:
            _LOG.info("the cluster can be reached again")
        self._is_reachable = error is None

    async def _look(self) -> None:
        """Compare the cluster with the store once."""
        live = set(await self._gateway.live_jobs())
        self._drop_ended_followers()
        # After the living: whoever is not among them any more has left its last words by then.
        await self._unheard.look(live)
        open_jobs = await asyncio.to_thread(self._store.open_job_ids)
        outlived: set[str] = set()
        for job_id in live - self._followers.keys():
            is_new = not await asyncio.to_thread(self._store.has_job, job_id)
            if is_new or job_id in open_jobs:
                task = asyncio.create_task(self._follow(job_id, is_new), name=f"follow-{job_id}")
                self._followers[job_id] = task
            elif await asyncio.to_thread(self._store.must_not_run, job_id):
                outlived.add(job_id)
        # Seen in one look only, it may just be on its way out.
        self._ending = {job: task for job, task in self._ending.items() if not task.done()}
        for job_id in (outlived & self._outlived) - self._ending.keys():
            # Not waited for: a supervisor that does not answer holds up no other job.
            task = asyncio.create_task(self._end_again(job_id), name=f"end-{job_id}")
            self._ending[job_id] = task
        self._outlived = outlived
        gone = open_jobs - live - self._followers.keys()
        self._missing_since = {
            job_id: self._missing_since.get(job_id, self._clock()) for job_id in gone
        }
        errors = await asyncio.gather(*(self._reconcile_one(job_id) for job_id in gone))
        if refused := [error for error in errors if error is not None]:
            raise refused[0]

    def _drop_ended_followers(self) -> None:
        for job_id, task in list(self._followers.items()):
            if task.done():
                del self._followers[job_id]
                if not task.cancelled() and (error := task.exception()) is not None:
                    _LOG.error("following job %s failed; it begins again", job_id, exc_info=error)

    async def _follow(self, job_id: str, is_new: bool) -> None:
        """Follow one job until its end, or until its supervisor is gone."""
        try:
            if is_new:
                await self._adopt(job_id)
            await self._deliver_cancel(job_id)
            after = await asyncio.to_thread(self._store.last_sequence, job_id)
            while not await self._follow_once(job_id, after):
                after = await asyncio.to_thread(self._store.last_sequence, job_id)
                await asyncio.sleep(self._settings.poll_pause_s)
        except JobNotFoundError:
            _LOG.info("the supervisor of job %s is gone", job_id)
        except ClusterError as error:
            _LOG.warning("job %s cannot be followed for now: %s", job_id, error)

    async def _follow_once(self, job_id: str, after: int) -> bool:
        """Wait for news of a job and keep them; returns whether the job has ended."""
        news = await self._gateway.events(job_id, after, self._settings.poll_timeout_s)
        fresh = await asyncio.to_thread(self._store.append_events, job_id, news)
        self._hub.publish(job_id, fresh)
        if len(fresh) < len(news):
            # Another service was quicker, but its watchers are not those of this one.
            stored = await asyncio.to_thread(self._store.last_sequence, job_id)
            self._hub.note_stored(job_id, stored)
        has_ended = any(isinstance(event, StateEvent) and event.state.is_at_rest for event in news)
        try:
            status = await self._gateway.status(job_id)
        except (JobNotFoundError, ClusterError):
            if has_ended:  # The events told the end; only the last figures are missing.
                return True
            raise
        await asyncio.to_thread(self._store.save_status, job_id, status)
        if has_ended:
            # Asking beyond the last event says that it was read: its driver waits for that.
            with contextlib.suppress(JobNotFoundError, ClusterError):
                await self._gateway.events(job_id, news[-1].sequence, 0.0)
        return has_ended

    async def _adopt(self, job_id: str) -> None:
        """Add a job that somebody started without this service."""
        spec = await self._gateway.spec(job_id)
        status = await self._gateway.status(job_id)
        await asyncio.to_thread(
            self._store.add_job,
            job_id,
            spec,
            source="ray",
            created=status.created,
            reason=status.reason,
        )
        await asyncio.to_thread(self._store.save_status, job_id, status)

    async def _deliver_cancel(self, job_id: str) -> None:
        """Tell a supervisor that came up meanwhile that its job was cancelled."""
        job = await asyncio.to_thread(self._store.open_job, job_id)
        if job is not None and job.cancel_requested:
            with contextlib.suppress(JobConflictError):
                await self._gateway.cancel(job_id)

    async def _end_again(self, job_id: str) -> None:
        """Cancel a job that has ended for the service, and whose supervisor is up all the same.

        A driver that is stopped at the very moment at which Ray starts it may escape, and one whose
        submission Ray did not confirm in time may still come, and start the job that nobody follows
        any more.
        """
        with contextlib.suppress(JobConflictError, JobNotFoundError, ClusterError):
            if (await self._gateway.status(job_id)).state.is_at_rest:
                return
            await self._gateway.cancel(job_id)
            _LOG.warning("job %s runs though it has ended; it was told to cancel", job_id)

    async def _reconcile_one(self, job_id: str) -> ClusterError | None:
        """Reconcile one job so that its failure is not that of the others; return Ray's refusal."""
        async with self._places:
            try:
                await self._reconcile(job_id)
            except ClusterError as error:
                return error
            except Exception:
                _LOG.exception("looking after job %s failed; it is tried again", job_id)
        return None

    async def _reconcile(self, job_id: str) -> None:
        """Close a job whose supervisor is gone, if that is what has happened."""
        job = await asyncio.to_thread(self._store.open_job, job_id)
        if job is None:
            return
        if await self._unheard.take_in(job_id):
            _LOG.info("job %s ended, or was paused, unheard", job_id)
            return
        if job.state is JobState.PAUSED:
            return
        if not job.handed_over:
            # Not waited for: Ray may take its time over it, and the other jobs go on.
            self._submissions.hand_over(job_id)
            return
        driver = await self._gateway.driver_status(job.driver_id)
        if job.cancel_requested and driver is not None and not driver.state.is_final:
            # Whoever noted the request may not have come to this.
            await self._gateway.stop_driver(job.driver_id)
            return
        missing_s = self._clock() - self._missing_since[job_id]
        outcome = decide_outcome(job, driver, missing_s, self._patience)
        if outcome is None:
            return
        status = closed_status(job.status, outcome) if job.status is not None else None
        ended = await asyncio.to_thread(
            self._store.close_job, job_id, outcome.state, outcome.reason, self._clock(), status
        )
        self._hub.publish(job_id, ended)
        _LOG.info("job %s ended as %s: %s", job_id, outcome.state.value, outcome.reason)
