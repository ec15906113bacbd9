"""Names under which the parts of a job find each other on the cluster."""

NAMESPACE = "mics"
"""Ray namespace of all supervisors."""

SUPERVISOR_PREFIX = "mics-job:"

SPEC_VARIABLE = "MICS_JOB_SPEC"
"""Environment variable that carries the JSON specification to a driver started by the service."""


def supervisor_name(job_id: str) -> str:
    """Return the Ray actor name of a job's supervisor."""
    return SUPERVISOR_PREFIX + job_id


def runner_name(job_id: str, group_id: int) -> str:
    """Return the Ray actor name of the runner of a job's partition group."""
    return f"mics-group:{job_id}:{group_id}"


def job_id_of(actor_name: str) -> str | None:
    """Return the job whose supervisor has this actor name, or none."""
    if not actor_name.startswith(SUPERVISOR_PREFIX):
        return None
    return actor_name.removeprefix(SUPERVISOR_PREFIX)
