"""How routes reach the objects that `service.app.build_app` made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from service.auth.authenticator import Authenticator
from service.control import Control
from service.gateway import ClusterGateway
from service.jobs import Jobs
from service.logs import Logs
from service.metrics.registry import Metrics
from service.routes.examples import JOB_ID
from service.settings import Settings
from service.store import Store
from service.submissions import Submissions
from service.watchers import WatcherHub

__all__ = ["JobId", "Services", "ServicesOf"]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may need."""

    settings: Settings
    gateway: ClusterGateway
    store: Store
    hub: WatcherHub
    jobs: Jobs
    control: Control
    logs: Logs
    submissions: Submissions
    authenticator: Authenticator
    metrics: Metrics
    version: str


def _services_of(request: Request) -> Services:
    return cast("Services", request.app.state.services)


ServicesOf = Annotated[Services, Depends(_services_of)]


JobId = Annotated[str, Path(description="Id of the job.", examples=[JOB_ID])]
