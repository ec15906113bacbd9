"""The processes of a torchft run: a lighthouse, and a launcher for each group."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from benchmarks.harness.environments import PeerEnvironment
from benchmarks.harness.factory import ROOT
from benchmarks.recovery.setting import PARTITION_SIZE
from benchmarks.recovery.starts import given_way
from mics_core.cluster.local import free_port

__all__ = ["Group", "Lighthouse"]

_POLL_S = 0.1
"""How often the launcher looks at its workers, as torchrun's does."""
_LEAVE_TIMEOUT_S = 60.0


class Lighthouse:
    """The server that says who is in the quorum; a context manager.

    Args:
        environment: Where torchft is.
        options: Its own options beside address and minimum.
        log: Its output.
    """

    def __init__(self, environment: PeerEnvironment, options: Sequence[str], log: Path):
        self._command = [str(environment.bin / "torchft_lighthouse"), "--min_replicas", "1"]
        self._command += options
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        with self._log.open("wb") as log:
            self._process = _start([*self._command, "--bind", f"127.0.0.1:{port}"], log, {})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        _kill([self._process])


class Group:
    """One group and its launcher, which starts all workers anew when one of them ends.

    Args:
        name: The group's number, in words of torchft its replica id.
        environment: Where torchft is.
        lighthouse: Address of the lighthouse.
        arguments: Of the training script, after the group's name.
        log: The workers' output.
    """

    def __init__(
        self,
        name: str,
        environment: PeerEnvironment,
        lighthouse: str,
        arguments: Sequence[str],
        log: Path,
    ):
        self.name = name
        self._command = [str(environment.python), "-m", "benchmarks.recovery.torchft_job", name]
        self._command += arguments
        self._lighthouse = lighthouse
        self._log = log
        self._is_stopping = threading.Event()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._launcher = threading.Thread(target=self._launch, daemon=True)

    @property
    def pids(self) -> list[int]:
        """The workers that were started last."""
        return [worker.pid for worker in self._workers]

    def start(self, *, gives_way: bool = False) -> None:
        """Start the launcher, and it the workers.

        Args:
            gives_way: See [Note: whose processors a start takes] in `benchmarks.recovery.starts`.
        """
        with given_way() if gives_way else nullcontext():
            self._workers = self._start_workers()
        self._launcher.start()

    def stop(self) -> None:
        """End the launcher, and then the workers at once; both are gone afterwards."""
        self._is_stopping.set()
        if self._launcher.is_alive():
            self._launcher.join()
        _kill(self._workers)

    def leave(self) -> None:
        """Wait for workers that were told to leave; nobody starts them again."""
        self._is_stopping.set()
        self._launcher.join()
        with suppress(subprocess.TimeoutExpired):
            for worker in self._workers:
                worker.wait(_LEAVE_TIMEOUT_S)
        self.stop()

    def _launch(self) -> None:
        while not self._is_stopping.is_set():
            if any(worker.poll() is not None for worker in self._workers):
                _kill(self._workers)
                self._workers = self._start_workers()
            self._is_stopping.wait(_POLL_S)

    def _start_workers(self) -> list[subprocess.Popen[bytes]]:
        # A store of its own for each start: torchft would find the last one's addresses in it.
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(PARTITION_SIZE),
            "TORCHFT_LIGHTHOUSE": self._lighthouse,
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("ab") as log:
            ranks = range(PARTITION_SIZE)
            return [_start(self._command, log, common | {"RANK": str(rank)}) for rank in ranks]


def _start(
    command: list[str], log: IO[bytes], variables: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is the benchmark's to handle
    )


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()
