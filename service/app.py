"""Puts the service together: one function that builds the application from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi

from mics_core.spec.job import JobSpec
from service.auth.authenticator import COOKIE, Authenticator
from service.auth.binding import is_loopback
from service.auth.dependencies import authorize
from service.auth.middleware import AuthenticationMiddleware
from service.control import Control
from service.database import FileLock
from service.errors import ERROR_ANSWERS, install_error_handlers
from service.follower import Followers
from service.gateway import ClusterGateway
from service.guards import GuardMiddleware
from service.jobs import Jobs
from service.logs import Logs
from service.metrics.registry import Metrics
from service.metrics.requests import RequestMetricsMiddleware
from service.routes import (
    cluster,
    control,
    events,
    health,
    jobs,
    logs,
    metrics,
    plans,
    progress,
    session,
)
from service.routes.page import install_page
from service.routes.state import Services
from service.schemas import PlanRequest
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.tail import Tail
from service.watchers import WatcherHub

__all__ = ["build_app"]

_DESCRIPTION = """\
Starts, watches, scales and stops training jobs that run on a Ray cluster.

Jobs sent here and jobs sent by `ray job submit` are the same thing and appear in the same list.
Every error has one form: a stable code, a sentence with the value and the rule, and the remedy.
"""

_TAGS = [
    {"name": "jobs", "description": "Submit jobs and look at them."},
    {"name": "control", "description": "Scale, pause, resume and stop jobs."},
    {"name": "progress", "description": "How far jobs are, how fast, and where."},
    {"name": "plans", "description": "Predict layouts; nothing is started."},
    {"name": "events", "description": "What happens in a job, as it happens."},
    {"name": "logs", "description": "What the processes of a job write."},
    {"name": "cluster", "description": "The nodes and what runs on them."},
    {"name": "session", "description": "Log in and out; who am I."},
    {"name": "health", "description": "The service itself."},
]


def build_app(settings: Settings, gateway: ClusterGateway) -> FastAPI:
    """Build the application; it connects to the cluster when it is started.

    Args:
        settings: What was chosen.
        gateway: The cluster.
    """
    store = Store(settings.database)
    lock = FileLock(settings.database)
    authenticator = Authenticator(
        store.database, always=not is_loopback(settings.host), session_s=settings.session_s
    )
    hub = WatcherHub(most=settings.watchers, most_per_job=settings.watchers_per_job)
    submissions = Submissions(gateway, store, hub, settings)
    version = metadata.version("mics-elastic")
    figures = Metrics(store, hub, version)
    hub.listen(figures.observe)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        followers = Followers(gateway, store, hub, submissions, settings)
        tail = Tail(store, hub, settings.shared_poll_s)
        await followers.start()
        tail.start()
        try:
            yield
        finally:
            await tail.stop()
            await followers.stop()
            await submissions.stop()
            await gateway.close()
            store.close()
            lock.release()

    app = FastAPI(
        title="mics-elastic",
        summary="Elastic training of large PyTorch models on Ray.",
        description=_DESCRIPTION,
        version=version,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        redoc_url=None,
    )
    app.state.services = Services(
        settings=settings,
        gateway=gateway,
        store=store,
        hub=hub,
        jobs=Jobs(store),
        control=Control(gateway, store, hub, submissions, settings),
        logs=Logs(gateway, store, hub),
        submissions=submissions,
        authenticator=authenticator,
        metrics=figures,
        version=version,
    )
    install_error_handlers(app)
    for module in (jobs, control, progress, events, logs, cluster, plans, session):
        app.include_router(
            module.router, responses={401: ERROR_ANSWERS[401], 403: ERROR_ANSWERS[403]}
        )
    for module in (health, metrics):
        app.include_router(module.router)
    install_page(app, Path(__file__).parent / "static")
    # The last one added comes first: a refused caller gets the guards' headers too.
    app.add_middleware(AuthenticationMiddleware, authenticator=authenticator)
    app.add_middleware(GuardMiddleware, allowed_hosts=settings.known_hosts)
    app.add_middleware(RequestMetricsMiddleware, metrics=figures.requests)
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
            _use_the_one_error_form(schema)
            schema["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            }
            # The empty one: a service of this machine alone that has no tokens.
            schema["security"] = [{"token": []}, {"session": []}, {}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _use_the_one_error_form(schema: dict[str, Any]) -> None:
    """Put the service's form of errors where FastAPI documents one of its own."""
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {}).get("application/json", {})
                if content.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                    content["schema"] = {"$ref": "#/components/schemas/ErrorBody"}
                    answer["description"] = ERROR_ANSWERS[422]["description"]
