"""Drivers of jobs as the Ray Jobs API has them; these calls block."""

from __future__ import annotations

import json
import time
from typing import Any

from ray.job_submission import JobSubmissionClient

from mics_core.cluster.names import SPEC_VARIABLE
from mics_core.spec.changes import Continuation
from mics_core.spec.job import JobSpec
from mics_core.spec.status import DriverState, DriverStatus

__all__ = ["driver_status", "stop_driver", "submit_driver"]

_LAST_LINES = 50


def submit_driver(
    client: JobSubmissionClient,
    job_id: str,
    spec: JobSpec,
    python: str,
    continuation: Continuation | None,
    patience_s: float,
) -> None:
    """Start the driver of a job.

    Args:
        client: Of the Jobs API.
        job_id: The job.
        spec: Its specification.
        python: Python of the cluster's nodes that has this package.
        continuation: How the job goes on, if this is not its first driver; it then gets the files
            that were sent with it the first time.
        patience_s: How long a head node that has just started is asked again.

    Raises:
        RuntimeError: The Jobs API refuses it.
    """
    environment = {SPEC_VARIABLE: json.dumps(spec.model_dump(mode="json"))}
    command = f"{python} -m mics_core.cluster.driver --job-id {job_id}"
    if continuation is not None:
        command += f" --after {continuation.after}"
    deadline = time.monotonic() + patience_s
    while True:
        try:
            files = {} if continuation is None else _files_of(client, job_id)
            client.submit_job(
                entrypoint=command,
                submission_id=job_id if continuation is None else continuation.driver_id,
                runtime_env={**files, "env_vars": environment},
                metadata={"mics": spec.name},
            )
            return
        except RuntimeError as error:
            # A head node that has just started says so for a few seconds.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def driver_status(client: JobSubmissionClient, driver_id: str) -> DriverStatus | None:
    """Return how a driver fares; none if the Jobs API knows no such."""
    try:
        details = client.get_job_info(driver_id)
    except RuntimeError as error:
        if _is_unknown_job(error):
            return None
        raise
    state = DriverState(str(details.status.value).lower())
    message = details.message or ""
    if state is DriverState.SUCCEEDED:
        # Ray's message says only that it did; how the job ended is in its last lines.
        message = "\n".join(client.get_job_logs(driver_id).splitlines()[-_LAST_LINES:])
    return DriverStatus(state=state, message=message)


def stop_driver(client: JobSubmissionClient, driver_id: str) -> None:
    """End a driver; one that is gone or was never known is no error."""
    try:
        client.stop_job(driver_id)
    except RuntimeError as error:
        if not _is_unknown_job(error):
            raise


def _files_of(client: JobSubmissionClient, job_id: str) -> dict[str, Any]:
    """Return the part of a job's first environment that names what its author sent with it."""
    try:
        first = client.get_job_info(job_id).runtime_env or {}
    except RuntimeError as error:
        if _is_unknown_job(error):
            return {}
        raise
    return {name: first[name] for name in ("working_dir", "py_modules") if first.get(name)}


def _is_unknown_job(error: RuntimeError) -> bool:
    return "status code 404" in str(error)
