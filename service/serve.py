"""Runs the service: the application, the real cluster behind it, and a server in front."""

from __future__ import annotations

import logging
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from mics_core.cluster.gateway import RayGateway
from service.app import build_app
from service.settings import Settings

__all__ = ["run", "serve_app"]

_SHUTDOWN_S = 5


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; then open event streams are ended, while jobs go on."""
    gateway = RayGateway(
        settings.ray_address,
        dashboard=settings.dashboard_url,
        driver_python=settings.driver_python,
    )
    serve_app(build_app(settings, gateway), settings)


def serve_app(app: FastAPI, settings: Settings) -> None:
    """Put a server in front of `app`, until a signal ends it."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
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
    )


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
