"""Routes that steer live jobs."""

from __future__ import annotations

from fastapi import APIRouter

from service.errors import ERROR_ANSWERS
from service.gateway import GroupsChange
from service.routes.state import JobId, ServicesOf
from service.schemas import JobDetail, ScaleRequest

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/jobs", tags=["control"], responses=ERROR_ANSWERS)


@router.post("/{job_id}/scale", summary="Scale a job")
async def scale_job(job_id: JobId, body: ScaleRequest, services: ServicesOf) -> JobDetail:
    """Change the wanted number of partition groups, its bounds, or both.

    Groups join and leave at step boundaries while the others train on. Bounds that leave the number
    outside move it to the nearest one. A job that is just starting is waited for, a few seconds.
    """
    change = GroupsChange(body.groups, body.minimum, body.maximum)
    return await services.control.scale(job_id, change)


@router.post("/{job_id}/cancel", summary="Cancel a job")
async def cancel_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Stop a job at its next step boundary; one that has not started never will."""
    return await services.control.cancel(job_id)


@router.post("/{job_id}/pause", summary="Pause a job")
async def pause_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Have a job write a checkpoint at its next step boundary and give its nodes back.

    Its state is `paused` once nothing of it runs. A job without `checkpoint.directory` is refused.
    """
    return await services.control.pause(job_id)


@router.post("/{job_id}/resume", summary="Resume a paused job")
async def resume_job(job_id: JobId, services: ServicesOf) -> JobDetail:
    """Have a paused job go on from its newest checkpoint, under the same id."""
    return await services.control.resume(job_id)
