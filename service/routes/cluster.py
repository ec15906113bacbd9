"""The route that shows the cluster."""

from __future__ import annotations

from fastapi import APIRouter

from service.errors import ERROR_ANSWERS
from service.nodes import cluster_of
from service.routes.state import ServicesOf
from service.schemas import Cluster

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/cluster", tags=["cluster"])


@router.get("", summary="Show the cluster", responses={503: ERROR_ANSWERS[503]})
async def show_cluster(services: ServicesOf) -> Cluster:
    """Show the nodes, what runs on them and what is free, and what has no room yet."""
    return await cluster_of(services.gateway, services.store)
