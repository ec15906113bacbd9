"""The one door from the service to Ray, as the service sees it.

The service knows only this protocol. `mics_core.cluster.gateway.RayGateway` is the real thing;
tests play jobs behind the same door without a cluster.
"""

from __future__ import annotations

from typing import Protocol

from mics_core.spec.job import JobSpec
from mics_core.spec.status import DriverStatus, JobEvent, JobStatus

__all__ = ["ClusterGateway"]


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

    async def submit(self, job_id: str, spec: JobSpec) -> None:
        """Start the driver of a new job; returns once the cluster has accepted it."""

    async def driver_status(self, job_id: str) -> DriverStatus | None:
        """Return how the driver of a submitted job fares; none if the cluster knows no such."""

    async def stop_driver(self, job_id: str) -> None:
        """End the driver of a job whose supervisor is not up; one that is gone is no error."""

    async def live_jobs(self) -> list[str]:
        """Return the jobs whose supervisors are alive."""

    async def spec(self, job_id: str) -> JobSpec:
        """Return the specification of a live job."""

    async def status(self, job_id: str) -> JobStatus:
        """Return the status of a live job."""

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[JobEvent]:
        """Return the events beyond sequence number `after`, in order.

        Waits for the first one, at most `timeout_s` seconds; then the answer is empty.
        """

    async def scale(self, job_id: str, wanted: int) -> JobStatus:
        """Change the wanted number of partition groups.

        Raises:
            ScaleError: The number is outside the job's bounds.
            JobConflictError: The job has ended.
        """

    async def cancel(self, job_id: str) -> JobStatus:
        """Have the job stop at its next step boundary.

        Raises:
            JobConflictError: It has ended, or is being cancelled already.
        """
