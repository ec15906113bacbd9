"""The routes that say whether the service is well."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from mics_core.errors import ClusterError
from service.redaction import without_paths
from service.routes.state import Services, ServicesOf
from service.schemas import Health, Readiness

__all__ = ["router"]

router = APIRouter(tags=["health"])

_NOT_READY = {"ready": False, "database": "connected", "ray": "It does not answer."}


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
        words = await _words_of(error, services)
        return Health(status="degraded", version=version, ray=words)
    return Health(status="ok", version=version, ray="connected")


@router.get(
    "/readyz",
    summary="Readiness of the service",
    responses={
        503: {
            "model": Readiness,
            "description": "The database or Ray does not answer.",
            "content": {"application/json": {"example": _NOT_READY}},
        }
    },
)
async def show_readiness(services: ServicesOf, response: Response) -> Readiness:
    """Say whether jobs can be submitted and steered now; 503 if not."""
    database, ray = "connected", "connected"
    try:
        await asyncio.to_thread(services.store.check)
    except SQLAlchemyError:
        database = "It does not answer."
    try:
        await services.gateway.health()
    except ClusterError as error:
        ray = await _words_of(error, services)
    is_ready = database == ray == "connected"
    if not is_ready:
        response.status_code = 503
    return Readiness(ready=is_ready, database=database, ray=ray)


async def _words_of(error: ClusterError, services: Services) -> str:
    """Return what everybody may hear: where tokens are needed, no details."""
    if await services.authenticator.needs_token():
        return "It does not answer."
    return without_paths(str(error))
