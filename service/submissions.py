"""Starts jobs so that each exists once or not at all, whatever dies in between.

A job is stored before the cluster hears of it, together with the key that a client may have given.
With that it is accepted: the client has its answer while Ray still starts the driver. The job is
handed over to Ray under an id that Ray takes once, and that is noted. A service that is killed, or
whose cluster does not answer, between the two leaves a job that is not handed over; whoever finds
it next completes that (`Submissions.complete`). A claim in the database keeps two services from
doing so at once.

Ray's refusal is not the last word: a call that was given up in time may still start the driver. So
each attempt looks for the driver first, and a job is closed only after Ray has refused for a while,
its driver, should there be one, has been told to stop, and nobody has handed it over meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from mics_core.errors import ClusterError, JobConflictError
from mics_core.spec.job import JobSpec
from mics_core.spec.status import JobState
from service.errors import RequestError
from service.file_checks import FileChecks
from service.gateway import ClusterGateway
from service.redaction import without_paths
from service.rows import OpenJob
from service.schemas import JobDetail
from service.settings import Settings
from service.store import Store, SubmissionKey
from service.watchers import WatcherHub

__all__ = ["Submissions", "new_job_id"]

_LOG = logging.getLogger(__name__)

# Each may take twenty seconds of a Ray that does not answer, and on Postgres a connection of its
# own, of which a server has a hundred by default, for all its clients.
_HAND_OVERS_AT_ONCE = 4


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
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_HAND_OVERS_AT_ONCE)
        self._kept: set[str] = set()
        self._late: set[str] = set()
        # By driver, so that each resumption is waited for anew.
        self._refused_since: dict[str, float] = {}

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
        most = self._settings.open_jobs_per_owner
        # Asked again where it is stored; here it saves a question to Ray.
        await asyncio.to_thread(self._store.require_room, owner, most)
        await self.check(spec)
        job_id = new_job_id(spec.name)
        add = functools.partial(
            self._store.add_job,
            job_id,
            spec,
            source="rest",
            created=self._clock(),
            reason="It was submitted; Ray is starting its driver.",
            owner=owner,
            key=known,
            handed_over=False,
            most_open=most,
        )
        # Stored and read in one turn of a thread: each waits for its own under load.
        job = await asyncio.to_thread(lambda: self._store.job(job_id) if add() else None)
        if job is None:
            assert known is not None, "a fresh id was known already"
            return await self._first_of(known)
        self.hand_over(job_id)
        _LOG.info("job %s was submitted", job_id)
        return job

    async def stop(self) -> None:
        """Leave what is not handed over yet to whoever finds it next."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def hand_over(self, job_id: str) -> None:
        """Begin to hand a stored job over, unless that is under way.

        It waits for its turn: a few are handed over at a time. Where it fails, it is tried again by
        who looks for such jobs.
        """
        if job_id in self._under_way or job_id in self._kept:
            return
        task = asyncio.create_task(self._hand_over(job_id), name=f"hand-over-{job_id}")
        # The loop itself holds its tasks weakly.
        self._under_way[job_id] = task
        task.add_done_callback(lambda _: self._under_way.pop(job_id))

    @contextmanager
    def kept(self, job_id: str) -> Iterator[None]:
        """Leave the hand-over of a job to who has this context open, who answers for its outcome.

        Other services may still see to it.
        """
        is_outermost = job_id not in self._kept
        self._kept.add(job_id)
        try:
            yield
        finally:
            if is_outermost:
                self._kept.discard(job_id)

    async def _hand_over(self, job_id: str) -> None:
        try:
            async with self._places:
                await self.complete(job_id)
            self._late.discard(job_id)
        except ClusterError as error:
            # Once for each job: it is tried every second.
            level = logging.DEBUG if job_id in self._late else logging.WARNING
            self._late.add(job_id)
            _LOG.log(level, "job %s is not handed over yet: %s", job_id, error)
        except Exception:
            _LOG.exception("handing job %s over failed; it is tried again", job_id)

    async def complete(self, job_id: str) -> None:
        """Hand a job over that is stored; nothing is done if that has happened, or does now.

        A job that must not or cannot be started any more is closed; one that was paused before is
        so again.

        Raises:
            ClusterError: The cluster cannot be asked, or does not take the job for now.
        """
        async with self._claimed(job_id) as is_mine:
            job = await asyncio.to_thread(self._store.open_job, job_id)
            if not is_mine or job is None or job.handed_over:
                return
            # One that has been heard of was started, whatever Ray knows of its driver now.
            is_new = job.state is JobState.PENDING
            if is_new and await self._gateway.driver_status(job.driver_id) is None:
                if job.cancel_requested:
                    reason = "It was cancelled before it was started."
                    await self._give_up(job, JobState.CANCELLED, reason)
                    return
                detail = await asyncio.to_thread(self._store.job, job_id)
                try:
                    await self._gateway.submit(job_id, detail.spec, job.continuation)
                except ClusterError as error:
                    if await self._is_refused_for_good(job, error):
                        return
                    raise
            self._refused_since.pop(job.driver_id, None)
            await asyncio.to_thread(self._store.note_handed_over, job_id, job.submission)
            _LOG.info("job %s was handed over", job_id)

    async def take_back(self, job_id: str, submission: int, reason: str) -> bool:
        """Have a resumed job be paused again, if nobody has asked Ray for its driver yet.

        Args:
            job_id: The job.
            submission: Which of its resumptions is meant.
            reason: Why, in one sentence.

        Returns:
            False where Ray was asked: the driver may come up, so its hand-over goes on.
        """
        async with self._claimed(job_id) as is_mine:
            job = await asyncio.to_thread(self._store.open_job, job_id)
            if not is_mine or job is None or job.submission != submission:
                return False
            if job.handed_over or job.driver_id in self._refused_since:
                return False
            await self._give_up(job, JobState.PAUSED, reason)
            return True

    async def _is_refused_for_good(self, job: OpenJob, error: ClusterError) -> bool:
        """Note that Ray refused a job, and close it if it has done so for long enough.

        Time in which no service asked Ray does not count.
        """
        now = self._clock()
        since = self._refused_since.setdefault(job.driver_id, now)
        if now - since < self._settings.start_patience_s:
            return False
        if await self._gateway.driver_status(job.driver_id) is not None:
            return False  # it was started all the same, which the next attempt notes
        # A call that was given up may yet start it; `Followers` ends what comes up after this.
        await self._gateway.stop_driver(job.driver_id)
        if job.submission:
            state, what = JobState.PAUSED, "It could not be resumed"
        else:
            state, what = JobState.FAILED, "It cannot start"
        await self._give_up(job, state, f"{what}: {without_paths(str(error))}")
        return True

    async def _give_up(self, job: OpenJob, state: JobState, reason: str) -> None:
        """Close a job whose driver is not handed over, and say why."""
        told = await asyncio.to_thread(
            self._store.give_up_driver, job.job_id, job.submission, state, reason, self._clock()
        )
        self._refused_since.pop(job.driver_id, None)
        self._hub.publish(job.job_id, told)

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
    # Without defaults: they may be written out or not, and a new version may bring new ones.
    text = json.dumps(spec.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
