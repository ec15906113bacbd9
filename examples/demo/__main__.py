"""Runs the demonstration: `python -m examples.demo`, or `make demo`.

A Ray cluster of one head and three nodes on this machine, the service on the loopback interface, a
job over REST; then one more partition group joins and one node is killed while it trains.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
from rich.console import Console

from examples.demo.job import demo_job
from examples.demo.report import conclude
from examples.demo.scenario import Scenario
from mics_core.cluster.local import LocalCluster, free_port
from service.client import MicsClient

DEFAULT_PORT = 8600
SERVICE_START_S = 60.0


def main() -> int:
    """Run the demonstration; return 0 if everything it promises held."""
    options = _parse()
    console = Console(highlight=False)
    begun = time.monotonic()
    _heed_signals()
    with ExitStack() as stack:
        console.print("Starting a Ray cluster: one head, three nodes with two workers each …")
        cluster = stack.enter_context(LocalCluster(num_nodes=3, workers_per_node=2))
        _heed_signals()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mics-demo-"))
        url = _start_service(stack, cluster, Path(folder), options.port)
        client = stack.enter_context(closing(MicsClient(url)))
        job = client.submit(demo_job(options.steps))
        console.print(f"\n[bold]The page: {url}/#/jobs/{job.job_id}[/bold]\n")
        scenario = Scenario(client, cluster.kill_node, console.print)
        facts = scenario.follow(job.job_id, options.steps)
        scenario.join()
        elapsed_s = time.monotonic() - begun
        status = conclude(console, facts, options.steps, elapsed_s, options.result)
        if options.keep and facts.steps:
            _wait_for_interrupt(console, url)
    return status


def _heed_signals() -> None:
    """Let Ctrl-C and `kill` take the cluster down.

    What a shell starts in the background of a script ignores Ctrl-C unless it says otherwise. Ray
    puts a handler of its own for `kill` in place with each node that it starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=240, help="steps of the job")
    parser.add_argument("--port", type=int, help=f"port of the service (default {DEFAULT_PORT})")
    parser.add_argument("--keep", action="store_true", help="stay up until Ctrl-C")
    parser.add_argument("--result", type=Path, default=Path("demo-result.json"))
    return parser.parse_args()


def _start_service(stack: ExitStack, cluster: LocalCluster, folder: Path, port: int | None) -> str:
    """Start `mics serve` in a process of its own and wait until it answers."""
    port = port or (DEFAULT_PORT if _is_free(DEFAULT_PORT) else free_port())
    url = f"http://127.0.0.1:{port}"
    log = stack.enter_context((folder / "service.log").open("wb"))
    service = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)],
        env=os.environ
        | {
            "MICS_DATA_DIRECTORY": str(folder),
            "MICS_RAY_ADDRESS": cluster.address,
            "MICS_DASHBOARD_URL": cluster.dashboard_url,
            "MICS_DRIVER_PYTHON": sys.executable,
        },
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the service
    )
    stack.callback(_end, service)
    deadline = time.monotonic() + SERVICE_START_S
    while True:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).json()["status"] == "ok":
                return url
        except httpx.TransportError:
            pass
        if service.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The service did not start:\n{(folder / 'service.log').read_text()}")
        time.sleep(0.2)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_interrupt(console: Console, url: str) -> None:
    try:
        console.print(f"Service and cluster stay up at {url} until Ctrl-C.")
        signal.pause()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
