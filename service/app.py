"""Puts the service together: one function that builds the application from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mics_core.spec.job import JobSpec
from service.errors import install_error_handlers
from service.follower import Followers
from service.gateway import ClusterGateway
from service.guards import GuardMiddleware
from service.jobs import Jobs
from service.routes import control, events, health, jobs, plans
from service.routes.page import install_page
from service.routes.state import Services
from service.schemas import PlanRequest
from service.settings import Settings
from service.store import Store
from service.watchers import WatcherHub

__all__ = ["build_app"]

_DESCRIPTION = """\
Starts, watches, scales and stops training jobs that run on a Ray cluster.

Jobs sent here and jobs sent by `ray job submit` are the same thing and appear in the same list.
Every error has one form: a stable code, a sentence with the value and the rule, and the remedy.
"""

_TAGS = [
    {"name": "jobs", "description": "Submit jobs and look at them."},
    {"name": "control", "description": "Scale and stop live jobs."},
    {"name": "plans", "description": "Predict layouts; nothing is started."},
    {"name": "events", "description": "What happens in a job, as it happens."},
    {"name": "health", "description": "The service itself."},
]


def build_app(settings: Settings, gateway: ClusterGateway) -> FastAPI:
    """Build the application; it connects to the cluster when it is started.

    Args:
        settings: What was chosen.
        gateway: The cluster.
    """
    store = Store(settings.database)
    hub = WatcherHub()
    version = metadata.version("mics-elastic")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        followers = Followers(gateway, store, hub, settings)
        await followers.start()
        try:
            yield
        finally:
            await followers.stop()
            await gateway.close()
            store.close()

    app = FastAPI(
        title="mics-elastic",
        summary="Elastic training of large PyTorch models on Ray.",
        description=_DESCRIPTION,
        version=version,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = Services(
        settings=settings,
        gateway=gateway,
        store=store,
        hub=hub,
        jobs=Jobs(gateway, store, settings),
        version=version,
    )
    install_error_handlers(app)
    for module in (jobs, control, plans, events, health):
        app.include_router(module.router)
    install_page(app, Path(__file__).parent / "static")
    app.add_middleware(GuardMiddleware, allowed_hosts=settings.allowed_hosts)
    _document_specification(app)
    return app


def _document_specification(app: FastAPI) -> None:
    """Add the specification to the OpenAPI schema: its routes read it themselves, from two formats.

    The schema that answers use lists defaults as required; what may be sent is another one.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for body in (JobSpec, PlanRequest):
                own = body.model_json_schema(ref_template="#/components/schemas/{model}")
                for name, definition in own.pop("$defs", {}).items():
                    schemas.setdefault(name, definition)
                schemas.setdefault(body.__name__, own)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
