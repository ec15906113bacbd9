"""The route that says whether the service is well."""

from __future__ import annotations

from fastapi import APIRouter

from mics_core.errors import ClusterError
from service.routes.state import ServicesOf
from service.schemas import Health

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Health of the service")
async def show_health(services: ServicesOf) -> Health:
    """Say whether the service and its connection to Ray work.

    Answers 200 also when Ray cannot be reached: the service itself is alive, and history can be
    read.
    """
    version = services.version
    try:
        await services.gateway.health()
    except ClusterError as error:
        return Health(status="degraded", version=version, ray=str(error))
    return Health(status="ok", version=version, ray="connected")
