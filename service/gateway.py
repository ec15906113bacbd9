"""The one door from the service to Ray, as the service sees it.

The service knows only this protocol. `mics_core.cluster.gateway.RayGateway` is the real thing;
tests play jobs behind the same door without a cluster.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from mics_core.spec.changes import Continuation, GroupsChange
from mics_core.spec.job import JobSpec
from mics_core.spec.last_words import EndedJob, LastWords
from mics_core.spec.nodes import ClusterView, LogSource
from mics_core.spec.status import DriverStatus, JobEvent, JobStatus

__all__ = ["ClusterGateway", "Continuation", "GroupsChange"]


class ClusterGateway(Protocol):
    """Starts, finds, watches and steers jobs on a cluster.

    Every method returns or raises within a bounded time. All of them raise `ClusterError` where the
    cluster cannot be reached or does not answer in time; those about the supervisor of a job raise
    `JobNotFoundError` where that supervisor is not alive (not yet, or not any more).
    """

    async def connect(self) -> None:
        """Connect, or connect again; does nothing while the connection works."""

    async def close(self) -> None:
        """Disconnect. Jobs go on."""

    async def health(self) -> None:
        """Return if the cluster answers.

        Raises:
            ClusterError: Says why it does not.
        """

    async def check_layout(self, spec: JobSpec) -> None:
        """Check that the cluster as it is can hold a partition group of `spec`.

        A partition size of `auto` is chosen, and checked, by the job's driver.

        Raises:
            LayoutError: It cannot; names the value, the rule and the remedy.
        """

    async def submit(
        self, job_id: str, spec: JobSpec, continuation: Continuation | None = None
    ) -> None:
        """Start the driver of a job; returns once the cluster has accepted it.

        Args:
            job_id: The job.
            spec: Its specification.
            continuation: How it goes on, if it was paused; else it is new.
        """

    async def driver_status(self, driver_id: str) -> DriverStatus | None:
        """Return how a driver fares; none if the cluster knows no such.

        The first driver of a job has the job's id. The message of one that has ended is the last
        lines of its output.
        """

    async def stop_driver(self, driver_id: str) -> None:
        """End the driver of a job whose supervisor is not up; one that is gone is no error."""

    async def live_jobs(self) -> list[str]:
        """Return the jobs whose supervisors are alive."""

    async def ended_jobs(self) -> dict[str, EndedJob]:
        """Return the jobs that left last words, the oldest first."""

    async def last_words(self, job_id: str) -> LastWords | None:
        """Return what a job's supervisor left behind when the job ended or was paused.

        None if nothing is kept: only those of the newest jobs are.
        """

    async def spec(self, job_id: str) -> JobSpec:
        """Return the specification of a live job."""

    async def status(self, job_id: str) -> JobStatus:
        """Return the status of a live job."""

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[JobEvent]:
        """Return the events beyond sequence number `after`, in order.

        Waits for the first one, at most `timeout_s` seconds; then the answer is empty.
        """

    async def scale(self, job_id: str, change: GroupsChange) -> JobStatus:
        """Change the wanted number of partition groups, and its bounds.

        Raises:
            ScaleError: The number is outside the job's bounds, or they cannot be.
            JobConflictError: The job has ended.
        """

    async def pause(self, job_id: str) -> JobStatus:
        """Have the job write a checkpoint at its next step boundary and end there, to be resumed.

        Raises:
            JobConflictError: It writes no checkpoints, has ended, or is about to.
        """

    async def cancel(self, job_id: str) -> JobStatus:
        """Have the job stop at its next step boundary.

        Raises:
            JobConflictError: It has ended, or is being cancelled already.
        """

    async def cluster(self) -> ClusterView:
        """Return the nodes, what is taken of them, and what has no room."""

    async def open_logs(
        self, source: LogSource, tail: int, *, follow: bool
    ) -> list[AsyncGenerator[str]]:
        """Open what a process has written, as the lines of each of its files.

        Args:
            source: Which process; one of which there is no log gives nothing.
            tail: At most so many lines of the past of each file.
            follow: Whether to go on with what it writes from now on, until closed.
        """
