"""Preloaded processes that fork workers, one on each node; see `benchmarks.harness.worker`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from benchmarks.harness.nodes import Node

__all__ = ["WorldError", "WorldFactory", "tail_of"]

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("torch", "torch.distributed.fsdp", "transformers.models.gpt2.modeling_gpt2")
_START_TIMEOUT_S = 300.0
_PRELOAD_LOG = "preload.log"


class WorldError(Exception):
    """A worker failed or did not answer; the message names the rank and the cause."""


class WorldFactory:
    """Preloaded processes, one a node, that fork the workers of any number of worlds.

    A context manager: at its end every process that came from it is gone.

    Args:
        nodes: Where the workers run.
        folder: For the logs.
        python: The interpreter.
        variables: Environment variables beside the usual ones.
        preload: Modules to import beside the usual ones.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        folder: Path,
        *,
        python: Path = Path(sys.executable),
        variables: dict[str, str] | None = None,
        preload: Sequence[str] = (),
    ):
        self.nodes = list(nodes)
        self.folder = folder
        self._command = [str(python), "-m", "benchmarks.harness.worker"]
        self._variables = variables or {}
        self._preload = [*PRELOADED, *preload]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._controls: list[socket.socket] = []

    def __enter__(self) -> WorldFactory:
        try:
            for node in self.nodes:
                self._start(node)
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def fork(self, node_index: int, variables: dict[str, str], pipe: Connection) -> int:
        """Fork a worker on a node that answers at the other end of `pipe`; return its pid."""
        control = self._controls[node_index]
        socket.send_fds(control, [json.dumps(variables).encode()], [pipe.fileno()])
        return int(control.recv(16))

    def _start(self, node: Node) -> None:
        mine, theirs = socket.socketpair()
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": node.interface,
            "TOKENIZERS_PARALLELISM": "false",
            **self._variables,
        }
        command = [*node.command_prefix, *self._command, str(theirs.fileno()), *self._preload]
        with (self.folder / _PRELOAD_LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the benchmark's to handle
            )
        theirs.close()
        self._processes.append(process)
        self._controls.append(mine)

    def _wait_until_ready(self) -> None:
        log = self.folder / _PRELOAD_LOG
        for control, node in zip(self._controls, self.nodes, strict=True):
            control.settimeout(_START_TIMEOUT_S)
            try:
                said = control.recv(16)
            except TimeoutError:
                raise WorldError(
                    f"node {node.name} was not ready in {_START_TIMEOUT_S:.0f} s:\n{tail_of(log)}"
                ) from None
            if said != b"ready":
                raise WorldError(f"node {node.name} could not start:\n{tail_of(log)}")

    def _stop(self) -> None:
        for control in self._controls:
            control.close()
        for process in self._processes:
            # Forked workers are of the same process group, which lasts as long as any of them.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail_of(log: Path, num_lines: int = 15) -> str:
    """Return the last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-num_lines:])
