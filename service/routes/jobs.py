"""Routes that start jobs, list them, show them, and forget them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import StringConstraints

from mics_core.spec.job import JobSpec
from mics_core.spec.load import parse_job_spec
from mics_core.spec.status import JobState
from service.auth.dependencies import CallerOf
from service.bodies import read_specification_body
from service.errors import ERROR_ANSWERS
from service.listing import JobFilter, Position
from service.routes.examples import JOB_ID, SPECIFICATION_EXAMPLE, SPECIFICATION_EXAMPLE_YAML
from service.routes.state import JobId, ServicesOf
from service.schemas import ErrorBody, JobDetail, JobList

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
    415: {"model": ErrorBody, "description": "The body is neither JSON nor YAML."},
    422: ERROR_ANSWERS[422],
}


async def _specification(request: Request) -> JobSpec:
    """Read the body through the specification's own checks, whose errors say what to do."""
    return parse_job_spec(await read_specification_body(request))


Label = Annotated[str, StringConstraints(max_length=300, pattern=r"^[A-Za-z0-9._/-]+:[^\x00]*$")]

Specification = Annotated[JobSpec, Depends(_specification)]


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses=_SPECIFICATION_ANSWERS
    | {status: ERROR_ANSWERS[status] for status in (409, 429, 503)},
    openapi_extra=_REQUEST_BODY,
)
async def submit_job(
    spec: Specification,
    services: ServicesOf,
    caller: CallerOf,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="Any text of your own, new for each new job, such as a UUID. Sent again"
            " with the same specification it gives the job that it started, and starts nothing.",
            examples=["6f1c1f5e-8d3b-4d0e-9a53-0d4b3a1f9a11"],
        ),
    ] = None,
) -> JobDetail:
    """Check the specification and its files, then start the job.

    The body is one job specification, as JSON or as YAML. Nothing is started, and nothing is left
    in the list, unless the answer is 201.
    """
    job = await services.submissions.submit(spec, caller.name, idempotency_key)
    response.headers["Location"] = f"/api/v1/jobs/{job.job_id}"
    return job


@router.post(
    "/validate",
    summary="Check a specification",
    responses=_SPECIFICATION_ANSWERS | {503: ERROR_ANSWERS[503]},
    openapi_extra=_REQUEST_BODY,
)
async def validate_job(spec: Specification, services: ServicesOf) -> JobSpec:
    """Make the checks of a submission and start nothing.

    Returns the specification with every default filled in.
    """
    return await services.submissions.check(spec)


@router.get("", summary="List the jobs", responses={422: ERROR_ANSWERS[422]})
async def list_jobs(
    services: ServicesOf,
    state: Annotated[
        list[JobState] | None,
        Query(
            description="Only jobs in this state; may be repeated for any of several.",
            examples=[["running", "waiting"]],
        ),
    ] = None,
    owner: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=r"^[^\x00]*$",
            description="Only jobs of this owner.",
            examples=["ada"],
        ),
    ] = None,
    label: Annotated[
        list[Label] | None,
        Query(
            max_length=32,
            description="Only jobs with this label, as `name:value`; may be repeated for all of"
            " several.",
            examples=[["team:search"]],
        ),
    ] = None,
    limit: Annotated[
        int, Query(ge=1, le=10_000, description="Most jobs to return.", examples=[20])
    ] = 100,
    cursor: Annotated[
        str | None,
        Query(
            max_length=500,
            description="`next_cursor` of the page before.",
            examples=[Position(1767261600.0, JOB_ID).cursor],
        ),
    ] = None,
) -> JobList:
    """List all jobs, newest first, whoever started them."""
    return await services.jobs.list(
        JobFilter(
            states=tuple(state or ()),
            owner=owner,
            labels=tuple(_split(one) for one in label or ()),
            after=None if cursor is None else Position.from_cursor(cursor),
            limit=limit,
        )
    )


def _split(label: str) -> tuple[str, str]:
    name, _, value = label.partition(":")
    return name, value


@router.get("/{job_id}", summary="Show a job", responses={404: ERROR_ANSWERS[404]})
async def show_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Show everything about one job: its specification, partition groups and generations."""
    return await services.jobs.job(job_id)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete the record of a job",
    responses={404: ERROR_ANSWERS[404], 409: ERROR_ANSWERS[409]},
)
async def delete_job(job_id: JobId, services: ServicesOf) -> None:
    """Forget a job that has ended, with its events and steps. Its checkpoints stay."""
    await services.jobs.delete(job_id)
