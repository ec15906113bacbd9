"""All metrics of one application, in a registry of its own."""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, generate_latest

from mics_core.spec.status import JobEvent
from service.metrics.follow import EventMetrics
from service.metrics.jobs import JobCollector
from service.metrics.readings import Readings, read_jobs
from service.metrics.requests import RequestMetrics
from service.store import Store
from service.watchers import WatcherHub

__all__ = ["Metrics"]


class Metrics:
    """What one application tells Prometheus.

    Args:
        store: Its jobs.
        hub: Its watchers.
        version: Its version.
    """

    def __init__(self, store: Store, hub: WatcherHub, version: str):
        registry = CollectorRegistry(auto_describe=False)
        self._registry = registry
        self._store = store
        self._scraping = threading.Lock()
        self._readings: Readings
        self.requests = RequestMetrics(registry)
        self._events = EventMetrics(registry)
        Info("mics_build", "Version of the service.", registry=registry).info(
            {"version": version, "python": platform.python_version()}
        )
        watchers = Gauge("mics_watchers", "Open event streams.", registry=registry)
        watchers.set_function(lambda: hub.num_seats)
        registry.register(JobCollector(lambda: self._readings))
        ProcessCollector(registry=registry)

    def observe(self, job_id: str, new: Sequence[JobEvent]) -> None:
        """Count events that were just stored."""
        self._events.observe(job_id, new)

    def render(self) -> bytes:
        """Read the store and return everything in Prometheus' text format. Blocks."""
        with self._scraping:
            self._readings = read_jobs(self._store.database)
            live = {job.job_id for job in self._readings.live}
            self._events.begin(live)
            text = generate_latest(self._registry)
            # After the text, so that the last that happened in a job is told once.
            self._events.forget_all_but(live)
            return text
