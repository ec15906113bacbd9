"""The worker processes: one preloaded process a node, which forks each system's workers.

Imports take most of a worker's start, and there are many systems; forking shares them, in time and
in memory. The preloaded process uses no thread and no process group, so forking it is safe.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from benchmarks.harness.messages import (
    Build,
    Built,
    Count,
    Counted,
    Drop,
    Failure,
    Run,
    RunBlock,
    Stepped,
    System,
    SystemInBlocks,
)
from benchmarks.harness.resident import peak_rss_bytes, reset_peak, rss_bytes
from benchmarks.harness.site import read_site

__all__ = ["COLLECTIVE_TIMEOUT_S", "main"]

COLLECTIVE_TIMEOUT_S = 240.0
_LARGEST_MESSAGE_BYTES = 1 << 16


def main(arguments: list[str]) -> None:
    """Preload modules, then fork a worker for each request until the benchmark is gone.

    Args:
        arguments: The control socket's descriptor, and the names of the modules.
    """
    for module in arguments[1:]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers need no wait
    with socket.socket(fileno=int(arguments[0])) as control:
        control.sendall(b"ready")
        while True:
            message, [*descriptors], _, _ = socket.recv_fds(control, _LARGEST_MESSAGE_BYTES, 1)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                control.close()
                _become_worker(json.loads(message), descriptors[0])
            os.close(descriptors[0])
            control.sendall(str(pid).encode())


def _become_worker(variables: dict[str, str], descriptor: int) -> None:
    """Serve as one worker and end the process."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(variables)
        log = os.open(variables["BENCH_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        _Worker(Connection(descriptor)).serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Peers may be gone already, and a clean end of gloo would wait for them.
        os._exit(status)


class _Worker:
    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._system: System | SystemInBlocks | None = None

    def serve(self) -> None:
        while True:
            try:
                request = self._pipe.recv()
            except EOFError:
                return
            try:
                reply: Any = self._answer(request)
            except BaseException:
                reply = Failure(traceback.format_exc())
                sys.stderr.write(reply.error)
                sys.stderr.flush()
            self._pipe.send(reply)

    def _answer(self, request: Any) -> Any:
        match request:
            case Build():
                return self._build(request)
            case Run(index):
                system = cast("System", self._system)
                begin_s = time.monotonic()
                loss = system.step(index)
                return Stepped(begin_s, time.monotonic(), loss, peak_rss_bytes())
            case RunBlock(num_steps):
                return cast("SystemInBlocks", self._system).block(num_steps)
            case Count():
                return Counted(_sent_bytes(os.environ["GLOO_SOCKET_IFNAME"]))
            case Drop():
                self._system = None
                reset_peak()
                return None
        raise TypeError(f"a worker cannot answer {request!r}")

    def _build(self, request: Build) -> Built:
        import torch
        import torch.distributed as dist

        from benchmarks.network.systems import build_system
        from mics_core.engine.allocator import keep_freed_memory

        torch.set_num_threads(1)
        # Every system, as a user of any of them could: how many pages a step gives back is by luck.
        keep_freed_memory()
        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        reset_peak()
        baseline = rss_bytes()
        self._system = build_system(request.system, request.spec, read_site())
        dist.barrier()
        built = Built(
            self._system.description,
            self._system.question,
            baseline,
            peak_rss_bytes(),
        )
        reset_peak()
        return built


def _sent_bytes(interface: str) -> int:
    counter = Path(f"/sys/class/net/{interface}/statistics/tx_bytes")
    return int(counter.read_text(encoding="ascii"))


if __name__ == "__main__":
    main(sys.argv[1:])
