"""Routes that start jobs and show them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from mics_core.spec.job import JobSpec
from mics_core.spec.load import parse_job_spec
from mics_core.spec.status import JobState
from service.bodies import read_specification_body
from service.errors import ERROR_ANSWERS
from service.routes.examples import SPECIFICATION_EXAMPLE, SPECIFICATION_EXAMPLE_YAML
from service.routes.state import JobId, ServicesOf
from service.schemas import ErrorBody, JobDetail, JobList, Throughput

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"])

_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "example": SPECIFICATION_EXAMPLE,
            },
            "application/yaml": {
                "schema": {"$ref": "#/components/schemas/JobSpec"},
                "example": SPECIFICATION_EXAMPLE_YAML,
            },
        },
    }
}

_SPECIFICATION_ANSWERS: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorBody, "description": "The body is too large."},
    415: {"model": ErrorBody, "description": "The body is neither JSON nor YAML."},
    422: ERROR_ANSWERS[422],
}


async def _specification(request: Request) -> JobSpec:
    """Read the body through the specification's own checks, whose errors say what to do."""
    return parse_job_spec(await read_specification_body(request))


Specification = Annotated[JobSpec, Depends(_specification)]


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses=_SPECIFICATION_ANSWERS | {503: ERROR_ANSWERS[503]},
    openapi_extra=_REQUEST_BODY,
)
async def submit_job(spec: Specification, services: ServicesOf, response: Response) -> JobDetail:
    """Check the specification and its files, then start the job.

    The body is one job specification, as JSON or as YAML. Nothing is started, and nothing is left
    in the list, unless the answer is 201.
    """
    job = await services.jobs.submit(spec)
    response.headers["Location"] = f"/api/v1/jobs/{job.job_id}"
    return job


@router.post(
    "/validate",
    summary="Check a specification",
    responses=_SPECIFICATION_ANSWERS,
    openapi_extra=_REQUEST_BODY,
)
async def validate_job(spec: Specification, services: ServicesOf) -> JobSpec:
    """Make the checks of a submission and start nothing.

    Returns the specification with every default filled in.
    """
    return await services.jobs.check(spec)


@router.get("", summary="List the jobs", responses={422: ERROR_ANSWERS[422]})
async def list_jobs(
    services: ServicesOf,
    state: Annotated[
        list[JobState] | None, Query(description="Only jobs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most jobs to return.")] = 1000,
) -> JobList:
    """List all jobs, newest first, whoever started them."""
    return await services.jobs.list(state or [], limit)


@router.get("/{job_id}", summary="Show a job", responses={404: ERROR_ANSWERS[404]})
async def show_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Show everything about one job: its specification, partition groups and generations."""
    return await services.jobs.job(job_id)


@router.get(
    "/{job_id}/throughput",
    summary="Show the newest steps",
    responses={404: ERROR_ANSWERS[404], 422: ERROR_ANSWERS[422]},
)
async def show_throughput(
    job_id: JobId,
    services: ServicesOf,
    limit: Annotated[int, Query(ge=1, le=100_000, description="Most steps to return.")] = 1000,
) -> Throughput:
    """Show the newest committed steps of a job, oldest first."""
    return await services.jobs.throughput(job_id, limit)
