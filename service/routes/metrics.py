"""The route that Prometheus scrapes."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.errors import ERROR_ANSWERS
from service.routes.state import ServicesOf

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        401: ERROR_ANSWERS[401],
    },
)
async def show_metrics(services: ServicesOf) -> Response:
    """Give all metrics of the service and of its live jobs, in Prometheus' text format."""
    text = await asyncio.to_thread(services.metrics.render)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
