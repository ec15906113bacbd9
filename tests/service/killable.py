"""A service in a process of its own that a test kills at a chosen call to the cluster.

The cluster is played by the test's process, so it outlives the service as a real one does. Each
method of the gateway is a call over a socket; a gate holds one call before or after its effect, and
while it holds, the test kills the service.

    python killable.py SOCKET PORT DATABASE_URL FOLDER quick|default

imports what a service needs once, and for each line that it reads forks one that is there at once.
The last word says how often that looks at the cluster: by default, or ten times as often.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import uvicorn
from fakes import FakeCluster

from mics_core.cluster.local import free_port
from mics_core.errors import ClusterError
from service.app import build_app
from service.settings import Settings

_UP_WITHIN_S = 60.0
_REACHED_WITHIN_S = 30.0


@dataclass
class Gate:
    """Holds the next call of a method, until the service is dead."""

    method: str
    when: Literal["before", "after"]
    reached: threading.Event = field(default_factory=threading.Event)
    service_is_dead: threading.Event = field(default_factory=threading.Event)

    def hold(self) -> None:
        self.reached.set()
        self.service_is_dead.wait()


class ClusterHost:
    """Serves a fake cluster to services in other processes.

    Args:
        address: Path of its socket.
    """

    def __init__(self, address: Path):
        self.cluster = FakeCluster()
        self.address = address
        self.gate: Gate | None = None
        self._listener = Listener(str(address), "AF_UNIX")
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection[Any, Any]) -> None:
        with connection:
            method, arguments = connection.recv()
            gate = self.gate if self.gate is not None and self.gate.method == method else None
            if gate is not None:
                self.gate = None
            if gate is not None and gate.when == "before":
                gate.hold()
                return  # whoever called died before the cluster heard of it
            try:
                answer = (True, asyncio.run(getattr(self.cluster, method)(*arguments)))
            except Exception as error:
                answer = (False, error)
            if gate is not None:
                gate.hold()
                return
            try:
                connection.send(answer)
            except BrokenPipeError:
                return  # a service that was killed asks no more


class RemoteGateway:
    """The gateway of a service whose cluster is a `ClusterHost`.

    Args:
        address: Path of its socket.
    """

    def __init__(self, address: str):
        self._address = address

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any) -> Any:
            return await asyncio.to_thread(self._call, method, arguments)

        return call

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            with Client(self._address, "AF_UNIX") as connection:
                connection.send((method, arguments))
                is_right, answer = connection.recv()
        except (OSError, EOFError) as error:
            raise ClusterError("The cluster does not answer.") from error
        if not is_right:
            raise answer
        return answer


class KillableService:
    """The service as a process, on one port and one database.

    Args:
        host: Its cluster.
        database_url: Its database.
        folder: Its data directory.
        intervals: `quick`, or `default` for those of a service of which nothing was chosen.
    """

    def __init__(
        self, host: ClusterHost, database_url: str, folder: Path, intervals: str = "quick"
    ):
        self.host = host
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = httpx.Client(base_url=self.url, timeout=30.0)
        own = [str(host.address), str(self._port), database_url, str(folder), intervals]
        self._command = [sys.executable, __file__, *own]
        self._log = folder / "service.log"
        with self._log.open("ab") as log:
            self._forker = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._process: psutil.Process | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        print("start", file=self._forker.stdin, flush=True)
        self._process = psutil.Process(int(self._forker.stdout.readline()))
        deadline = time.monotonic() + _UP_WITHIN_S
        while True:
            assert self._process.is_running(), self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            try:
                self.client.get("/healthz")
                return
            except httpx.TransportError:
                time.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it, and end the process that forks it."""
        self.kill()
        self.client.close()
        self._forker.communicate(timeout=_UP_WITHIN_S)

    def kill_at(
        self,
        method: str,
        when: Literal["before", "after"],
        path: str,
        *,
        is_behind_the_answer: bool = False,
        **request: Any,
    ) -> None:
        """Send a request, and kill the service before or after that call to the cluster."""
        gate = self.host.gate = Gate(method, when)

        def post() -> None:
            try:
                answer = httpx.post(f"{self.url}{path}", timeout=60.0, **request)
            except httpx.TransportError:
                return
            if not (is_behind_the_answer and answer.is_success):
                raise AssertionError(f"it answered with {answer.status_code}: {answer.text}")

        failed: list[BaseException] = []

        def run() -> None:
            try:
                post()
            except AssertionError as error:
                failed.append(error)

        sender = threading.Thread(target=run)
        sender.start()
        assert gate.reached.wait(_REACHED_WITHIN_S), f"{method} was not called"
        self.kill()
        gate.service_is_dead.set()
        sender.join()
        assert not failed, failed

    def kill_after(self, delay_s: float, path: str, **request: Any) -> bool:
        """Send a request, and kill the service that long after; return whether it was answered."""
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(self.client.post, path, **request)
            time.sleep(delay_s)  # the moment of the kill, which the test has drawn
            self.kill()
            try:
                answer = sent.result()
            except httpx.TransportError:
                return False
        assert answer.is_success, f"it answered with {answer.status_code}: {answer.text}"
        return True


@contextmanager
def run_killable(
    database_url: str, folder: Path, intervals: str = "quick"
) -> Iterator[KillableService]:
    host = ClusterHost(folder / "cluster.sock")
    service = KillableService(host, database_url, folder, intervals)
    service.start()
    try:
        yield service
    finally:
        service.close()
        host.close()


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no one to wait for them
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            serve()
            return
        print(pid, flush=True)


def serve() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    address, port, database_url, folder, intervals = sys.argv[1:]
    settings = Settings(data_directory=Path(folder), database_url=database_url)
    if intervals == "quick":
        quick = {
            "discovery_interval_s": 0.1,
            "poll_timeout_s": 0.5,
            "poll_pause_s": 0.01,
            "hold_s": 0.3,
        }
        settings = settings.model_copy(update=quick)
    app = build_app(settings, RemoteGateway(address))  # type: ignore[arg-type]
    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
