"""What the service may do on a Ray cluster: start jobs, find them, watch them, steer them.

Jobs are started through the Ray Jobs API, so that they appear in Ray's own tools, and steered
through their supervisors, which are found by name. So a job sent by `ray job submit` is served by
the same calls.

Two properties of Ray shape this file. Its blocking calls have no time limits (`ray.init`,
`ray.get_actor`, the HTTP requests of the Jobs client), so each runs in a daemon thread and is given
up in time. And several of its functions start a new local cluster when none is connected, so each
call makes sure of the connection first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import ray
from pydantic import TypeAdapter
from ray import exceptions as ray_errors
from ray.job_submission import JobSubmissionClient
from ray.util import list_named_actors

from mics_core.cluster import names
from mics_core.cluster.blocking import gist, in_daemon_thread, reclaim_signals
from mics_core.cluster.connection import knock
from mics_core.cluster.drivers import driver_status, stop_driver, submit_driver
from mics_core.cluster.last_words import ended_jobs, read_last_words
from mics_core.cluster.layout import check_layout
from mics_core.cluster.logs import log_files, open_lines
from mics_core.cluster.view import cluster_view
from mics_core.errors import ClusterError, JobNotFoundError, MicsError
from mics_core.spec.changes import Continuation, GroupsChange
from mics_core.spec.job import JobSpec
from mics_core.spec.last_words import EndedJob, LastWords
from mics_core.spec.nodes import ClusterView, LogSource
from mics_core.spec.status import DriverStatus, JobEvent, JobStatus

__all__ = ["RayGateway"]

_Result = TypeVar("_Result")

_EVENTS: TypeAdapter[list[JobEvent]] = TypeAdapter(list[JobEvent])


class RayGateway:
    """The service's connection to one Ray cluster.

    Args:
        address: Address of the cluster as `ray.init` takes it; `auto` finds the one running here.
        dashboard: Address of the Jobs API, such as `http://127.0.0.1:8265`; the default is the
            dashboard that the cluster names.
        driver_python: Python of the cluster's nodes that has this package.
        connect_timeout_s: Longest wait for a connection.
        call_timeout_s: Longest wait for an answer of Ray or of a supervisor.
    """

    def __init__(
        self,
        address: str = "auto",
        *,
        dashboard: str | None = None,
        driver_python: str = "python",
        connect_timeout_s: float = 30.0,
        call_timeout_s: float = 15.0,
    ):
        self._address = address
        self._dashboard = dashboard
        self._driver_python = driver_python
        self._connect_timeout_s = connect_timeout_s
        self._call_timeout_s = call_timeout_s
        self._connecting = asyncio.Lock()
        self._ray_init = threading.Lock()
        self._jobs_client: JobSubmissionClient | None = None

    async def connect(self) -> None:
        """Connect, or connect again after the cluster was lost.

        Raises:
            ClusterError: No cluster answers at the address in time.
        """
        async with self._connecting:
            if ray.is_initialized():
                try:
                    await self._ping()
                    return
                except ClusterError:
                    pass
                # A cluster that is gone leaves the process half connected; Ray can only begin anew.
                await self._disconnect()
            self._jobs_client = None
            try:
                await self._blocking("connect", self._init_ray, timeout_s=self._connect_timeout_s)
            finally:
                reclaim_signals()

    async def close(self) -> None:
        """Disconnect. Jobs go on."""
        self._jobs_client = None
        if ray.is_initialized():
            with contextlib.suppress(ClusterError):
                await self._disconnect()

    async def health(self) -> None:
        """Return if the cluster answers.

        Raises:
            ClusterError: Says why it does not.
        """
        await self._ping()

    async def check_layout(self, spec: JobSpec) -> None:
        """Check that the cluster as it is can hold a partition group of `spec`.

        Raises:
            LayoutError: It cannot; names the value, the rule and the remedy.
        """
        if spec.partition_size == "auto":
            return  # choosing it needs torch, which the driver has and the service has not
        await self._client()
        await self._blocking("look at the nodes", lambda: check_layout(spec))

    async def submit(
        self, job_id: str, spec: JobSpec, continuation: Continuation | None = None
    ) -> None:
        """Start the driver of a job through the Ray Jobs API.

        A job that goes on gets the files that were sent with it the first time.

        Raises:
            ClusterError: The Jobs API refuses it or does not answer.
        """
        client = await self._client()
        patience_s = self._call_timeout_s
        submit = functools.partial(
            submit_driver, client, job_id, spec, self._driver_python, continuation, patience_s
        )
        # A little longer than the attempts, so that the reason of the last one is told.
        await self._blocking(f"submit job {job_id}", submit, timeout_s=patience_s + 5.0)

    async def driver_status(self, driver_id: str) -> DriverStatus | None:
        """Return how a driver fares; none if the Jobs API knows no such."""
        ask = functools.partial(driver_status, await self._client(), driver_id)
        return await self._blocking(f"ask after the driver {driver_id}", ask)

    async def stop_driver(self, driver_id: str) -> None:
        """End a driver; one that is gone or was never known is no error."""
        stop = functools.partial(stop_driver, await self._client(), driver_id)
        await self._blocking(f"stop the driver {driver_id}", stop)

    async def live_jobs(self) -> list[str]:
        """Return the jobs whose supervisors are alive, whoever started them."""
        _require_connection()
        actors = await self._blocking(
            "list the jobs", lambda: list_named_actors(all_namespaces=True)
        )
        found = (
            names.job_id_of(actor["name"])
            for actor in actors
            if actor["namespace"] == names.NAMESPACE
        )
        return sorted(job_id for job_id in found if job_id)

    async def ended_jobs(self) -> dict[str, EndedJob]:
        """Return the jobs that left last words, the oldest first."""
        _require_connection()
        return await self._blocking("list the jobs that have ended", ended_jobs)

    async def last_words(self, job_id: str) -> LastWords | None:
        """Return what a job's supervisor left behind when the job ended or was paused."""
        _require_connection()
        read = functools.partial(read_last_words, job_id)
        return await self._blocking(f"read the last words of job {job_id}", read)

    async def spec(self, job_id: str) -> JobSpec:
        """Return the specification of a live job."""
        return JobSpec.model_validate(await self._call(job_id, "spec"))

    async def status(self, job_id: str) -> JobStatus:
        """Return the status of a live job."""
        return JobStatus.model_validate(await self._call(job_id, "status"))

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[JobEvent]:
        """Return the events beyond sequence number `after`; waits for one up to `timeout_s`."""
        answer = await self._call(job_id, "events", after, timeout_s, patience_s=timeout_s)
        return _EVENTS.validate_python(answer)

    async def scale(self, job_id: str, change: GroupsChange) -> JobStatus:
        """Change the wanted number of partition groups, and its bounds.

        Raises:
            ScaleError: The number is outside the job's bounds, or they cannot be.
            JobConflictError: The job has ended.
        """
        verb = "was" if change.wanted in (None, 1) else "were"
        reason = f"{change.words.capitalize()} {verb} asked for through the service."
        return JobStatus.model_validate(await self._call(job_id, "scale", change, reason))

    async def pause(self, job_id: str) -> JobStatus:
        """Have the job write a checkpoint at its next step boundary and end there.

        Raises:
            JobConflictError: It writes no checkpoints, has ended, or is about to.
        """
        reason = "It was paused through the service."
        return JobStatus.model_validate(await self._call(job_id, "pause", reason))

    async def cancel(self, job_id: str) -> JobStatus:
        """Have the job stop at its next step boundary.

        Raises:
            JobConflictError: It has ended, or is being cancelled already.
        """
        reason = "It was cancelled through the service."
        return JobStatus.model_validate(await self._call(job_id, "cancel", reason))

    async def cluster(self) -> ClusterView:
        """Return the nodes, what is taken of them, and what has no room."""
        _require_connection()
        return await self._blocking("look at the nodes", cluster_view)

    async def open_logs(
        self, source: LogSource, tail: int, *, follow: bool
    ) -> list[AsyncGenerator[str]]:
        """Open what a process has written, as lines of each of its files."""
        client = await self._client()
        files = await self._blocking("find a log", functools.partial(log_files, source, client))
        return await open_lines(client.get_address(), files, tail, follow=follow)

    async def _call(
        self, job_id: str, method: str, *arguments: object, patience_s: float = 0.0
    ) -> Any:
        """Call a supervisor and give its answer or its error, both as they left it."""
        _require_connection()
        limit_s = self._call_timeout_s + patience_s
        supervisor = await self._supervisor(job_id)
        try:
            answer = getattr(supervisor, method).remote(*arguments)
            return await asyncio.wait_for(answer, limit_s)
        except TimeoutError:
            raise ClusterError(
                f"The supervisor of job {job_id} did not answer `{method}` in {limit_s:g} s.",
                remedy="Try again; if it stays so, look at its node in the Ray dashboard.",
            ) from None
        except ray_errors.RayTaskError as error:
            if isinstance(error.cause, MicsError):
                raise error.cause from None
            raise ClusterError(
                f"The supervisor of job {job_id} failed at `{method}`: {error.cause!r}.",
                remedy="Its log in the Ray dashboard has the details.",
            ) from None
        except ray_errors.RayActorError as error:
            await self._supervisor(job_id)  # raises where none is to follow
            raise ClusterError(
                f"The supervisor of job {job_id} cannot be reached now: {gist(error)}",
                remedy="Ray is reconnecting to it or starting it anew; try again in a few seconds.",
            ) from None
        except ray_errors.RayError as error:
            raise ClusterError(
                f"Ray could not deliver `{method}` to job {job_id}: {gist(error)}",
                remedy="Check the cluster with `ray status`.",
            ) from None

    async def _supervisor(self, job_id: str) -> Any:
        def find() -> Any:
            try:
                return ray.get_actor(names.supervisor_name(job_id), namespace=names.NAMESPACE)
            except ValueError:
                return None

        supervisor = await self._blocking(f"find the supervisor of {job_id}", find)
        if supervisor is None:
            raise _no_supervisor(job_id)
        return supervisor

    async def _client(self) -> JobSubmissionClient:
        if self._jobs_client is None:
            _require_connection()
            self._jobs_client = await self._blocking("reach the Ray Jobs API", self._build_client)
        return self._jobs_client

    def _build_client(self) -> JobSubmissionClient:
        chosen = os.environ.get("RAY_ADDRESS")
        if chosen and self._address not in ("auto", chosen):
            # Unlike `ray.init`, the Jobs client lets the variable go before what it is told.
            raise ClusterError(
                f"RAY_ADDRESS names {chosen}, while the service is connected to {self._address};"
                " the jobs would go to the former.",
                remedy="Unset RAY_ADDRESS, or give the service no other address.",
            )
        # Never without an address: the client would take the newest cluster of this machine. It
        # asks the cluster for its dashboard, which comes up some seconds after the rest.
        return JobSubmissionClient(self._dashboard or ray.get_runtime_context().gcs_address)

    def _init_ray(self) -> None:
        # An attempt that was given up may still run in its thread; two at once would clash.
        if not self._ray_init.acquire(timeout=self._connect_timeout_s):
            return
        try:
            knock(self._address)
            self._connect_to_ray()
        finally:
            self._ray_init.release()

    def _connect_to_ray(self) -> None:
        ray.init(
            address=self._address,
            namespace=names.NAMESPACE,
            ignore_reinit_error=True,
            log_to_driver=False,
            configure_logging=False,
        )

    async def _disconnect(self) -> None:
        try:
            await self._blocking("disconnect", ray.shutdown)
        finally:
            reclaim_signals()

    async def _ping(self) -> None:
        _require_connection()
        # A question to the head node: cached answers would not notice that it is gone.
        await self._blocking("reach the cluster", lambda: list_named_actors(all_namespaces=True))

    async def _blocking(
        self, purpose: str, work: Callable[[], _Result], *, timeout_s: float | None = None
    ) -> _Result:
        """Run a blocking call of Ray in a thread of its own, and give it up in time."""
        limit_s = timeout_s or self._call_timeout_s
        try:
            return await asyncio.wait_for(in_daemon_thread(work), limit_s)
        except TimeoutError:
            raise ClusterError(
                f"Ray did not answer in {limit_s:g} s, asked to {purpose}.",
                remedy="Check the cluster with `ray status`.",
            ) from None
        except MicsError:
            raise
        except Exception as error:
            raise ClusterError(
                f"Ray could not {purpose}: {gist(error)}",
                remedy=f"Check that a cluster runs at {self._address!r}, for example with"
                " `ray status`, or name another with MICS_RAY_ADDRESS.",
            ) from error


def _require_connection() -> None:
    if not ray.is_initialized():
        raise ClusterError(
            "The service is not connected to a Ray cluster.",
            remedy="It tries again every few seconds; check the cluster with `ray status`.",
        )


def _no_supervisor(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(
        f"Job {job_id} has no supervisor on the cluster.",
        remedy="It has not started yet, or has ended.",
    )
