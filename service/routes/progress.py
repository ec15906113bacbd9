"""Routes that show how far a job is, how fast, and where its workers are."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service.errors import ERROR_ANSWERS
from service.routes.state import JobId, ServicesOf
from service.schemas import CheckpointList, Placement, Throughput

__all__ = ["router"]

router = APIRouter(
    prefix="/api/v1/jobs",
    tags=["progress"],
    responses={404: ERROR_ANSWERS[404], 422: ERROR_ANSWERS[422]},
)

_LARGEST = 2**53


@router.get("/{job_id}/throughput", summary="Show the history of the steps")
async def show_throughput(
    job_id: JobId,
    services: ServicesOf,
    points: Annotated[
        int, Query(ge=1, le=10_000, description="Most points to return.", examples=[120])
    ] = 500,
    first_step: Annotated[
        int | None,
        Query(ge=0, le=_LARGEST, description="First step; the run's if left out.", examples=[0]),
    ] = None,
    last_step: Annotated[
        int | None,
        Query(ge=0, le=_LARGEST, description="Last step; the newest if left out.", examples=[239]),
    ] = None,
) -> Throughput:
    """Show the committed steps of a job, oldest first, at a chosen resolution.

    Where there are more steps than points, a point stands for `steps_per_point` of them.
    """
    return await services.jobs.throughput(job_id, points, first_step, last_step)


@router.get("/{job_id}/checkpoints", summary="List the checkpoints")
async def list_checkpoints(job_id: JobId, services: ServicesOf) -> CheckpointList:
    """List the checkpoints that a job has written, and those that failed, oldest first."""
    return await services.jobs.checkpoints(job_id)


@router.get("/{job_id}/placement", summary="Show where the workers are")
async def show_placement(job_id: JobId, services: ServicesOf) -> Placement:
    """Show the node, partition group, rank and step of every worker of a job that runs."""
    return await services.jobs.placement(job_id)
