"""Processes that form one gloo world and run functions together, kept for a whole test module."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness.processes import process_context
from mics_core.comm.store import MeetingStore, host_store


class WorkerPool:
    """`size` processes, each a rank of one default world."""

    def __init__(self, size: int, port: int):
        context = process_context()
        self.size = size
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 180
    ) -> list[Any]:
        """Call `function(*arguments)` on every rank; return the results by rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        results, errors = [], []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout_s):
                raise TimeoutError(f"rank {rank} has not answered within {timeout_s} s")
            ok, value = pipe.recv()
            (results if ok else errors).append(value if ok else f"rank {rank}:\n{value}")
        if errors:
            raise AssertionError("\n".join(errors))
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def running_pool(size: int) -> Iterator[WorkerPool]:
    """Run a pool; none of its processes is left afterwards."""
    store = host_store("127.0.0.1")
    pool = WorkerPool(size, store.port)
    try:
        yield pool
    finally:
        pool.close()
        store.close()


def _serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = MeetingStore("127.0.0.1", port)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
    os._exit(0)  # peers may be gone already, and a clean shutdown of gloo would wait for them
