"""Puts the service together: one function that builds the application from its settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

from fastapi import Depends, FastAPI

from service.auth.authenticator import Authenticator
from service.auth.binding import is_loopback
from service.auth.dependencies import authorize
from service.auth.middleware import AuthenticationMiddleware
from service.control import Control
from service.database import FileLock
from service.document import DESCRIPTION, TAGS, document
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
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.tail import Tail
from service.watchers import WatcherHub

__all__ = ["build_app"]


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
    hub.give_way(lambda: figures.requests.num_waiting > 0)

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
        description=DESCRIPTION,
        version=version,
        openapi_tags=TAGS,
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        # FastAPI's own pages load their scripts from elsewhere; see `service.routes.page`.
        docs_url=None,
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
    document(app)
    return app
