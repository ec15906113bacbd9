"""Starts jobs so that each exists once or not at all, whatever dies in between.

A job is stored before the cluster hears of it, together with the key that a client may have given.
With that it is accepted: the client has its answer while Ray still starts the driver. The job is
handed over to Ray under an id that Ray takes once, and that is noted. A service that is killed, or
whose cluster does not answer, between the two leaves a job that is not handed over; whoever finds
it next completes that (`Submissions.complete`). A claim in the database keeps two services from
doing so at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mics_core.errors import ClusterError, JobConflictError
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobState
from service.errors import RequestError
from service.file_checks import FileChecks
from service.gateway import ClusterGateway
from service.schemas import JobDetail
from service.settings import Settings
from service.store import Store, SubmissionKey
from service.watchers import WatcherHub

__all__ = ["Submissions", "new_job_id"]

_LOG = logging.getLogger(__name__)


class Submissions:
    """Hands jobs over to the cluster.

    Args:
        gateway: The cluster.
        store: Where the jobs are kept.
        hub: Who is told of jobs that cannot start.
        settings: The patiences.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        gateway: ClusterGateway,
        store: Store,
        hub: WatcherHub,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ):
        self._gateway = gateway
        self._store = store
        self._hub = hub
        self._settings = settings
        self._clock = clock
        self._files = FileChecks()
        self._under_way: set[asyncio.Task[None]] = set()

    async def check(self, spec: JobSpec) -> JobSpec:
        """Make all checks that a submission makes, and start nothing.

        Raises:
            SpecificationError: Names every broken rule.
            RequestError: The storage of its files does not answer.
            ClusterError: The cluster cannot be asked whether it holds the layout.
        """
        await self._files.check(spec)
        await self._gateway.check_layout(spec)
        return spec

    async def submit(
        self, spec: JobSpec, owner: str | None = None, key: str | None = None
    ) -> JobDetail:
        """Accept a job, or return the one that the same key has started.

        It is stored when this returns; its hand-over to the cluster goes on behind the answer.

        Args:
            spec: The job.
            owner: Who submits it.
            key: What the client knows the repetition of this submission by.

        Raises:
            SpecificationError: A rule is broken; nothing was stored.
            RequestError: The key came with another specification before, or its owner has as many
                open jobs as one may have.
            ClusterError: The cluster cannot be asked; nothing was stored.
        """
        known = None if key is None else SubmissionKey(owner, key, _hash_of(spec))
        if known is not None and (job := await self._repeated(known)) is not None:
            return job
        await asyncio.to_thread(self._require_room, owner)
        await self.check(spec)
        job_id = new_job_id(spec.name)
        is_new = await asyncio.to_thread(
            self._store.add_job,
            job_id,
            spec,
            source="rest",
            created=self._clock(),
            reason="It was submitted; Ray is starting its driver.",
            owner=owner,
            key=known,
            handed_over=False,
        )
        if not is_new:
            assert known is not None, "a fresh id was known already"
            return await self._first_of(known)
        hand_over = asyncio.create_task(self._hand_over(job_id), name=f"hand-over-{job_id}")
        # The loop itself holds its tasks weakly.
        self._under_way.add(hand_over)
        hand_over.add_done_callback(self._under_way.discard)
        _LOG.info("job %s was submitted", job_id)
        return await asyncio.to_thread(self._store.job, job_id)

    async def stop(self) -> None:
        """Leave what is not handed over yet to whoever finds it next."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hand_over(self, job_id: str) -> None:
        """Hand a new job over; where that fails, it is tried again by who looks for such jobs."""
        try:
            await self.complete(job_id)
        except ClusterError as error:
            _LOG.warning("job %s is not handed over yet: %s", job_id, error)
        except Exception:
            _LOG.exception("handing job %s over failed; it is tried again", job_id)

    def _require_room(self, owner: str | None) -> None:
        most = self._settings.open_jobs_per_owner
        if self._store.num_open_jobs(owner) >= most:
            whose = f"{owner} has" if owner is not None else "This service has"
            raise RequestError(
                429,
                f"{whose} {most} open jobs, as many as one owner may have.",
                remedy="Wait for one to end, cancel one, or have MICS_OPEN_JOBS_PER_OWNER raised.",
                code="too_many_jobs",
            )

    async def complete(self, job_id: str) -> None:
        """Hand a job over that is stored; nothing is done if that has happened, or does now.

        A job that must not or cannot be started any more is closed.

        Raises:
            ClusterError: The cluster cannot be asked, or does not take the job for now.
        """
        async with self._claimed(job_id) as is_mine:
            job = await asyncio.to_thread(self._store.open_job, job_id)
            if not is_mine or job is None or job.handed_over:
                return
            if await self._gateway.driver_status(job.driver_id) is None:
                if job.cancel_requested:
                    await self._close(
                        job_id, JobState.CANCELLED, "It was cancelled before it was started."
                    )
                    return
                detail = await asyncio.to_thread(self._store.job, job_id)
                try:
                    await self._gateway.submit(job_id, detail.spec, job.continuation)
                except ClusterError as error:
                    waited_s = self._clock() - job.created
                    if job.submission or waited_s < self._settings.start_patience_s:
                        raise
                    await self._close(job_id, JobState.FAILED, f"It cannot start: {error}")
                    return
            await asyncio.to_thread(self._store.note_handed_over, job_id)
            _LOG.info("job %s was handed over", job_id)

    async def _close(self, job_id: str, state: JobState, reason: str) -> None:
        told = await asyncio.to_thread(
            self._store.close_job, job_id, state, reason, self._clock(), None
        )
        self._hub.publish(job_id, told)

    async def _repeated(self, key: SubmissionKey) -> JobDetail | None:
        """Return the job that a key has started, if there is one."""
        found = await asyncio.to_thread(self._store.submission, key.owner, key.key)
        if found is None:
            return None
        job_id, body_hash = found
        if body_hash != key.body_hash:
            raise RequestError(
                422,
                f"The Idempotency-Key {key.key[:80]!r} has submitted another specification, as job"
                f" {job_id}.",
                remedy="Use a new key for every new job.",
                code="idempotency_key_reused",
            )
        return await asyncio.to_thread(self._store.job, job_id)

    async def _first_of(self, key: SubmissionKey) -> JobDetail:
        """Return the job of a key that came twice at the same moment."""
        job = await self._repeated(key)
        if job is None:
            raise JobConflictError(
                "The same submission was made at the same moment, and the cluster refused it.",
                remedy="Repeat it.",
            )
        return job

    @asynccontextmanager
    async def _claimed(self, job_id: str) -> AsyncIterator[bool]:
        claim = self._store.database.claim(f"submission of {job_id}")
        is_mine = await asyncio.to_thread(claim.__enter__)
        try:
            yield is_mine
        finally:
            await asyncio.to_thread(claim.__exit__, None, None, None)


def new_job_id(name: str) -> str:
    """Return an id that people recognise and nobody else has: `slug-of-the-name-1a2b3c4d`."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "job"
    return f"{slug}-{secrets.token_hex(4)}"


def _hash_of(spec: JobSpec) -> str:
    """Return what is the same for the same job, however it was written down."""
    text = json.dumps(spec.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
