"""A synchronous client of the REST API, for scripts and for the command line.

    from service.client import MicsClient

    with MicsClient() as client:
        job = client.submit("job.yaml")
        for event in client.watch(job.job_id):
            print(event)

Every refusal of the service comes back as the `MicsError` that the service raised, with its code,
field and remedy; those that HTTP adds are in `service.transport`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mics_core.spec.cluster import ClusterSpec
from mics_core.spec.job import JobSpec
from mics_core.spec.load import load_job_spec, parse_job_spec
from service.reading import DEFAULT_URL, JOBS, Reader, path_of
from service.schemas import JobDetail, PlanAnswer
from service.transport import (
    ForbiddenError,
    LimitError,
    ServiceError,
    ServiceUnreachableError,
    TokenError,
)

__all__ = [
    "DEFAULT_URL",
    "ForbiddenError",
    "LimitError",
    "MicsClient",
    "ServiceError",
    "ServiceUnreachableError",
    "TokenError",
]

Job = JobSpec | Mapping[str, Any] | str | Path
"""A specification, a mapping with its fields, or the path of a YAML file."""


class MicsClient(Reader):
    """Talks to one service; its arguments, and what only reads, are those of `Reader`."""

    def submit(self, job: Job, *, idempotency_key: str | None = None) -> JobDetail:
        """Submit a job.

        Args:
            job: What to train.
            idempotency_key: Text of one's own choice: sent again with the same key, also after a
                lost answer or a restart of the service, it gives the same job.

        Raises:
            SpecificationError: A rule is broken; nothing was started.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key is not None else None
        return self._transport.call(JobDetail, "POST", JOBS, body=_body_of(job), headers=headers)

    def validate(self, job: Job) -> JobSpec:
        """Have the service check a specification against its files and its cluster.

        Returns:
            The specification with every default filled in.

        Raises:
            SpecificationError: A rule is broken.
        """
        return self._transport.call(JobSpec, "POST", f"{JOBS}/validate", body=_body_of(job))

    def plan(
        self, job: Job, cluster: str | ClusterSpec | None = None, nodes: int | None = None
    ) -> PlanAnswer:
        """Have the service choose a layout by predicted speed; nothing is started.

        Args:
            job: What to train.
            cluster: The name of a known cluster, or what a cluster file holds; by default what
                the job names.
            nodes: Nodes of the cluster, if not as many as it says.

        Raises:
            SpecificationError: Nothing fits, or the cluster or the model is not known.
        """
        known = cluster.model_dump(mode="json") if isinstance(cluster, ClusterSpec) else cluster
        body = {"job": _body_of(job), "cluster": known, "nodes": nodes}
        return self._transport.call(PlanAnswer, "POST", "/api/v1/plans", body=body)

    def scale(
        self,
        job_id: str,
        groups: int | None = None,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
    ) -> JobDetail:
        """Ask for another number of partition groups, or for other bounds of it.

        Raises:
            ScaleError: The number is outside the job's bounds.
            JobConflictError: The job has ended.
        """
        wanted = {"groups": groups, "minimum": minimum, "maximum": maximum}
        body = {name: value for name, value in wanted.items() if value is not None}
        return self._transport.call(JobDetail, "POST", path_of(job_id, "scale"), body=body)

    def cancel(self, job_id: str) -> JobDetail:
        """Stop a job at its next step boundary.

        Raises:
            JobConflictError: The job has ended already.
        """
        return self._transport.call(JobDetail, "POST", path_of(job_id, "cancel"))

    def pause(self, job_id: str) -> JobDetail:
        """Stop a job so that it can go on from its checkpoint; its nodes become free.

        Raises:
            JobConflictError: Its state does not allow it, or it writes no checkpoints.
        """
        return self._transport.call(JobDetail, "POST", path_of(job_id, "pause"))

    def resume(self, job_id: str) -> JobDetail:
        """Have a paused job go on from its checkpoint.

        Raises:
            JobConflictError: It is not paused.
        """
        return self._transport.call(JobDetail, "POST", path_of(job_id, "resume"))

    def delete(self, job_id: str) -> None:
        """Delete the record of a job that has ended; its checkpoints stay.

        Raises:
            JobConflictError: It has not ended.
        """
        self._transport.send("DELETE", path_of(job_id))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, interval_s: float = 1.0
    ) -> JobDetail:
        """Wait for the end of a job; a service that is started again meanwhile does no harm.

        Raises:
            TimeoutError: The job has not ended after `timeout_s`.
            ServiceUnreachableError: The service stays away for `max_retries` attempts.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        fruitless, detail = 0, self.job(job_id)
        while not detail.state.is_final:
            if deadline is not None and time.monotonic() + interval_s > deadline:
                raise TimeoutError(
                    f"job {job_id} is {detail.state} at step {detail.step} of {detail.steps} after"
                    f" {timeout_s:g} s. Raise timeout_s, or leave it out to wait for the end."
                )
            time.sleep(interval_s)
            try:
                detail, fruitless = self.job(job_id), 0
            except ServiceUnreachableError:
                fruitless += 1
                if fruitless > self._max_retries:
                    raise
        return detail


def _body_of(job: Job) -> dict[str, Any]:
    match job:
        case JobSpec():
            spec = job
        case str() | Path():
            spec = load_job_spec(job)
        case _:
            spec = parse_job_spec(job)
    return spec.model_dump(mode="json")
