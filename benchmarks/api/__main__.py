"""Measures the control plane: `python -m benchmarks.api`.

A service as an operator starts it, on a Ray cluster of this machine, with stored jobs and one that
trains and is watched by many. Requests come one after the other meanwhile. The job's compute is
emulated, so that its workers leave the processors to the service, as on a head node. A submission's
time lasts until it is answered: the job is stored, and Ray gets its driver behind the answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import psutil
from rich.table import Table

from benchmarks.api.stored import store_jobs
from benchmarks.harness.followed import eventually
from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.output import RESULTS, build_console, write_results
from mics_core.cluster.local import LocalCluster, free_port
from mics_core.spec import JobSpec
from mics_core.spec.status import JobState
from service.settings import Settings

GOALS = {
    "list_p99_ms": 25.0,
    "get_p99_ms": 25.0,
    "submit_p99_ms": 60.0,
    "step_to_event_p99_ms": 250.0,
    "rss_mib": 200.0,
    "events_dropped": 0.0,
}
_ROOT = Path(__file__).resolve().parents[2]
_API = "/api/v1/jobs"
_STORED_STEPS = 50
_PATIENCE_S = 240.0


@dataclass
class _Service:
    """A service of its own process.

    Args:
        process: It.
        client: Speaks to it.
        port: Where it listens.
        times_s: How long each kind of request took, one by one.
    """

    process: subprocess.Popen[bytes]
    client: httpx.Client
    port: int
    times_s: dict[str, list[float]] = field(default_factory=dict)

    def timed(self, kind: str, request: Callable[[], httpx.Response]) -> Any:
        """Make a request and note its time; returns its answer."""
        begin = time.perf_counter()
        answer = request()
        took_s = time.perf_counter() - begin
        answer.raise_for_status()
        self.times_s.setdefault(kind, []).append(took_s)
        return answer.json()

    def has(self, job_id: str, *states: JobState) -> bool:
        """Whether a job is in one of these states."""
        return self.client.get(f"{_API}/{job_id}").json()["state"] in states

    @property
    def rss_mib(self) -> float:
        """Its resident memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


def main() -> int:
    """Start everything, measure, show and write; return 1 if an event was dropped."""
    options = _parse()
    console = build_console()
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The cluster's processes import the emulated model from here.
    os.environ["PYTHONPATH"] = str(_ROOT)
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name, LocalCluster(1, 2) as cluster:
        folder = Path(name)
        spec = _job(write_tokens(folder), steps=1_000_000)
        settings = Settings(data_directory=folder / "data")
        store_jobs(settings, spec, options.jobs, _STORED_STEPS)
        with _serving(cluster, settings) as service:
            row, waits_ms = _measure(service, spec, options)
    table = Table(title="The control plane under load", title_justify="left")
    for heading in ("", "measured", "goal"):
        table.add_column(heading, justify="right" if heading else "left")
    for key, value in row.items():
        table.add_row(key, f"{value:.4g}", f"{GOALS[key]:g}" if key in GOALS else "")
    console.print(table)
    write_results(
        options.output,
        [row],
        requests={kind: len(times) for kind, times in service.times_s.items()},
        request_ms_median={kind: _ms(median(times)) for kind, times in service.times_s.items()},
        events_received=len(waits_ms),
        stored_jobs=options.jobs,
        steps_of_each=_STORED_STEPS,
    )
    console.print(f"written to {options.output}")
    return int(row["events_dropped"] > 0)


def _job(tokens: Path, steps: int) -> JobSpec:
    model = emulated_model(width=64, num_layers=2, forward_s=0.02)
    spec = training_job(tokens, model, global_batch_size=4, sequence_length=4, steps=steps)
    return spec.model_copy(update={"partition_size": 2})


@contextmanager
def _serving(cluster: LocalCluster, settings: Settings) -> Iterator[_Service]:
    """Run the service, as `mics serve` does, until the context is left."""
    port = free_port()
    environment = os.environ | {
        "MICS_DATA_DIRECTORY": str(settings.data_directory),
        "MICS_RAY_ADDRESS": cluster.address,
        "MICS_DASHBOARD_URL": cluster.dashboard_url,
        "MICS_DRIVER_PYTHON": sys.executable,
    }
    with (settings.data_directory / "service.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            service = _Service(process, client, port)
            eventually(lambda: _is_up(service), "the service", _PATIENCE_S)
            yield service
    finally:
        process.terminate()
        process.wait(30)


def _is_up(service: _Service) -> bool:
    try:
        return service.client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _measure(
    service: _Service, spec: JobSpec, options: argparse.Namespace
) -> tuple[dict[str, float], list[float]]:
    """Return the results, and from commit to arrival of every event, in ms."""
    body = spec.model_dump(mode="json", exclude_unset=True)
    live = service.client.post(_API, json=body).raise_for_status().json()["job_id"]
    eventually(lambda: service.has(live, JobState.RUNNING), "the live job's start", _PATIENCE_S)
    with _watching(service, live, options.watchers) as watchers:
        _request(service, live, options.requests)
        _submit(service, body, options.submissions)
        seen = _tell(watchers)
        rss_mib = service.rss_mib
    service.client.post(f"{_API}/{live}/cancel").raise_for_status()
    eventually(lambda: service.has(live, JobState.CANCELLED), "the live job's end", _PATIENCE_S)
    # The service ends drivers that have escaped Ray's stop, and needs the cluster for that.
    eventually(lambda: not _drivers(), "the end of all drivers", _PATIENCE_S)
    waits_ms = [_ms(wait) for wait in seen["waits_s"]]
    times = {kind: _percentile(found, 99) for kind, found in service.times_s.items()}
    return {
        "list_p99_ms": _ms(times["list"]),
        "get_p99_ms": _ms(times["get"]),
        "submit_p99_ms": _ms(times["submit"]),
        "watchers": seen["watchers"],
        "events_dropped": seen["events_dropped"],
        "step_to_event_p50_ms": _percentile(waits_ms, 50),
        "step_to_event_p99_ms": _percentile(waits_ms, 99),
        "rss_mib": rss_mib,
    }, waits_ms


def _drivers() -> list[psutil.Process]:
    """Return the drivers of jobs that run below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "mics_core.cluster.driver" in process.cmdline():
                found.append(process)
    return found


def _request(service: _Service, live: str, number: int) -> None:
    """List and get, page by page and job by job."""
    cursor: str | None = None
    for index in range(number):
        parameters = {} if cursor is None else {"cursor": cursor}
        page = service.timed("list", lambda p=parameters: service.client.get(_API, params=p))
        cursor = page["next_cursor"]
        job_id = live if index % 2 else page["jobs"][index % len(page["jobs"])]["job_id"]
        service.timed("get", lambda j=job_id: service.client.get(f"{_API}/{j}"))


def _submit(service: _Service, body: dict[str, Any], number: int) -> None:
    """Submit jobs that find no room, one after the other; each is gone before the next comes."""
    for index in range(number):
        asked = body | {"name": f"waits {index}"}
        job = service.timed("submit", lambda a=asked: service.client.post(_API, json=a))
        job_id = job["job_id"]
        service.client.post(f"{_API}/{job_id}/cancel").raise_for_status()
        eventually(
            lambda j=job_id: service.has(j, JobState.CANCELLED), f"the end of {job_id}", _PATIENCE_S
        )


@contextmanager
def _watching(service: _Service, job_id: str, number: int) -> Iterator[subprocess.Popen[str]]:
    """Watch a job's events from a process of its own, which is yielded once all are connected."""
    command = [sys.executable, "-m", "benchmarks.api.watchers"]
    watchers = subprocess.Popen(
        [*command, str(service.port), job_id, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _hear(watchers)
        yield watchers
    finally:
        watchers.kill()
        watchers.communicate()


def _tell(watchers: subprocess.Popen[str]) -> Any:
    """Ask the watchers what they have seen."""
    assert watchers.stdin is not None
    watchers.stdin.write("enough\n")
    watchers.stdin.flush()
    return _hear(watchers)


def _hear(watchers: subprocess.Popen[str]) -> Any:
    assert watchers.stdout is not None
    line = watchers.stdout.readline()
    assert line, "the watchers ended"
    return json.loads(line)


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def _ms(seconds: float) -> float:
    return 1000 * seconds


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__)
    add = parser.add_argument
    add("--jobs", type=int, default=1000, help="stored jobs")
    add("--watchers", type=int, default=500, help="of the live job's events")
    add("--requests", type=int, default=500, help="of each kind that reads")
    add("--submissions", type=int, default=60, help="jobs submitted and cancelled")
    add("--output", type=Path, default=RESULTS / "api.json", help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
