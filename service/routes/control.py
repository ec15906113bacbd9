"""Routes that steer live jobs."""

from __future__ import annotations

from fastapi import APIRouter

from service.errors import ERROR_ANSWERS
from service.routes.state import JobId, ServicesOf
from service.schemas import JobDetail, ScaleRequest

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["control"], responses=ERROR_ANSWERS)


@router.post("/{job_id}/scale", summary="Scale a job")
async def scale_job(job_id: JobId, body: ScaleRequest, services: ServicesOf) -> JobDetail:
    """Change the wanted number of partition groups.

    Groups join and leave at step boundaries while the others train on. A job that is just starting
    is waited for, a few seconds.
    """
    return await services.jobs.scale(job_id, body.groups)


@router.post("/{job_id}/cancel", summary="Cancel a job")
async def cancel_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Stop a job at its next step boundary; one that has not started never will."""
    return await services.jobs.cancel(job_id)
