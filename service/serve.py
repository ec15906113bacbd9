"""Runs the service: the application, the real cluster behind it, and a server in front."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mics_core.cluster.gateway import RayGateway
from service.app import build_app
from service.auth.binding import require_token_beyond_loopback
from service.database import Database
from service.patience import PatientProtocol
from service.settings import Settings

__all__ = ["run", "serve_app"]

_SHUTDOWN_S = 5
_SWITCH_S = 0.0005
"""A request hands over to a thread and back for each look at the database; with Python's 5 ms, each
may wait that long for whoever computes."""


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; then open event streams are ended, while jobs go on.

    Raises:
        SpecificationError: Other machines would reach it, and there is no token.
    """
    database = Database(settings.database)
    try:
        require_token_beyond_loopback(settings.host, database)
    finally:
        database.close()
    _do_without_arrow()
    gateway = RayGateway(
        settings.ray_address,
        dashboard=settings.dashboard_url,
        driver_python=settings.driver_python,
    )
    serve_app(build_app(settings, gateway), settings)


def _do_without_arrow() -> None:
    """Have imports of pyarrow fail in this process as if it were not installed.

    Ray loads it with its first call to an actor, to be able to pickle tables. No table passes
    through the service, and it would hold 60 MiB for that. None in the table of modules is Python's
    own way to say that a module is not there.
    """
    sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]


def serve_app(app: FastAPI, settings: Settings) -> None:
    """Put a server in front of `app`, until a signal ends it."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # It would write a line for every log that somebody reads.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.setswitchinterval(_SWITCH_S)
    # uvicorn stops in order and then raises the signal once more for whoever stood there before.
    signal.signal(signal.SIGTERM, _exit)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        # Logging is set up above, once for uvicorn and the service.
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        # Nobody in front is trusted to say who calls: limits by address must not be talked away.
        proxy_headers=False,
        http=PatientProtocol,
    )


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
