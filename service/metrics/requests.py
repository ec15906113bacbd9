"""Counts requests, and how long it took until their answers began."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestMetrics", "RequestMetricsMiddleware"]

_ANSWER_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMetrics:
    """The metrics of all requests.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry):
        self.num_waiting = 0
        """Requests whose answers have not begun."""
        self.total = Counter(
            "mics_http_requests_total",
            "Answered requests.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "mics_http_request_seconds",
            "Time until an answer began; streams go on after that.",
            ["method", "route"],
            buckets=_ANSWER_S,
            registry=registry,
        )


class RequestMetricsMiddleware:
    """Counts what passes through, also what is refused.

    Args:
        app: The application behind it.
        metrics: Where it is counted.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, waits = time.perf_counter(), True
        self._metrics.num_waiting += 1

        def begin_answer() -> None:
            nonlocal waits
            self._metrics.num_waiting -= waits
            waits = False

        async def send_counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                begin_answer()
                # What a client makes up must not become a series: neither paths nor methods.
                method = scope["method"] if scope["method"] in _METHODS else "other"
                route = getattr(scope.get("route"), "path", None) or "other"
                self._metrics.total.labels(method, route, str(message["status"])).inc()
                self._metrics.seconds.labels(method, route).observe(time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, send_counting)
        finally:
            begin_answer()
