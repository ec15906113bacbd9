"""`python -m service serve` as a process that tests start, kill and start again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from mics_core.cluster.local import LocalCluster, free_port
from tests.cluster.running import eventually

STARTS_WITHIN_S = 120.0
STOPS_WITHIN_S = 30.0


class ServiceProcess:
    """The service of one cluster, on one port, over one data directory.

    Args:
        cluster: Where its jobs run.
        folder: Its data directory.
    """

    def __init__(self, cluster: LocalCluster, folder: Path):
        self._folder = folder
        self._port = free_port()
        self._environment = os.environ | {
            "MICS_DATA_DIRECTORY": str(folder),
            "MICS_RAY_ADDRESS": cluster.address,
            "MICS_DASHBOARD_URL": cluster.dashboard_url,
            "MICS_DRIVER_PYTHON": sys.executable,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers and is connected to the cluster."""
        with (self._folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", str(self._port)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._is_up, f"a healthy service at {self.url}", STARTS_WITHIN_S)

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it as a person would."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the service did not end within {STOPS_WITHIN_S:g} s of SIGTERM"
            ) from None

    def is_answering(self) -> bool:
        """Whether anybody answers at its address."""
        try:
            httpx.get(f"{self.url}/healthz", timeout=10)
        except httpx.TransportError:
            return False
        return True

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = (self._folder / "service.log").read_text(encoding="utf-8")
            raise AssertionError(f"the service ended with {self._process.returncode}:\n{log}")
        try:
            return bool(httpx.get(f"{self.url}/healthz", timeout=10).json()["status"] == "ok")
        except httpx.TransportError:
            return False
