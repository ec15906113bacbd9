"""A world: the worker processes of one system, spread over nodes and driven from here.

[Note: timing a step]
All workers wait at their pipes when a step begins and when it has ended, so every system is timed
in the same way: from the first worker's begin to the last one's end. All processes share one clock.
The nodes' counters are read while nothing runs.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.harness.factory import WorldError, WorldFactory, tail_of
from benchmarks.harness.messages import (
    Block,
    Build,
    Built,
    Count,
    Counted,
    Drop,
    Failure,
    Run,
    RunBlock,
    Stepped,
)
from benchmarks.harness.nodes import Node
from benchmarks.harness.worker import COLLECTIVE_TIMEOUT_S
from mics_core.comm.nodes import NODES_VARIABLE
from mics_core.spec import JobSpec

__all__ = ["Step", "World"]

_REQUEST_TIMEOUT_S = 2 * COLLECTIVE_TIMEOUT_S
_GRACE_S = 2.0
_ISOLATED_PORTS = count(29500)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a system, over all its workers."""

    step_s: float
    loss: float
    bytes_out_per_node: int
    """Of the node that sent most."""
    peak_rss_bytes: int
    """Of the worker that held most."""


class World:
    """The workers of one system; a context manager that ends them.

    Args:
        factory: Forks the workers.
        label: Names the logs.
        workers_per_node: Workers on each node (k).
        variables: Environment variables of the workers beside the usual ones.
    """

    def __init__(
        self,
        factory: WorldFactory,
        label: str,
        workers_per_node: int,
        variables: dict[str, str] | None = None,
    ):
        self._factory = factory
        self._label = label.replace(" ", "-").replace("=", "")
        self._workers_per_node = workers_per_node
        self._variables = variables or {}
        self._pipes: list[Connection] = []
        self._pids: list[int] = []

    def __enter__(self) -> World:
        try:
            self._fork_workers()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pipe in self._pipes:
            pipe.close()
        self._pids, self._pipes = [], []

    def build(self, system: str, spec: JobSpec) -> list[Built]:
        """Have all workers build a system; return their answers by rank.

        Raises:
            WorldError: A worker failed.
        """
        return self._request(Build(system, spec))

    def drop(self) -> None:
        """Have all workers drop their system."""
        self._request(Drop())

    def step(self, index: int) -> Step:
        """Run one step on all workers; see [Note: timing a step].

        Raises:
            WorldError: A worker failed.
        """
        before = self._sent_bytes()
        parts: list[Stepped] = self._request(Run(index))
        after = self._sent_bytes()
        return Step(
            step_s=max(part.end_s for part in parts) - min(part.begin_s for part in parts),
            loss=sum(part.loss for part in parts),
            bytes_out_per_node=max(late - early for early, late in zip(before, after, strict=True)),
            peak_rss_bytes=max(part.peak_rss_bytes for part in parts),
        )

    def block(self, num_steps: int) -> Block:
        """Run steps one after the other; each is over when the last worker has committed it.

        Raises:
            WorldError: A worker failed.
        """
        parts: list[Block] = self._request(RunBlock(num_steps))
        return Block(
            times_s=[max(times) for times in zip(*(part.times_s for part in parts), strict=True)],
            losses=parts[0].losses,
            processor_s=sum(part.processor_s for part in parts),
        )

    def _sent_bytes(self) -> list[int]:
        counted: list[Counted] = self._request(Count())
        return [part.sent_bytes for part in counted[:: self._workers_per_node]]

    def _fork_workers(self) -> None:
        nodes, per_node = self._factory.nodes, self._workers_per_node
        world_size = len(nodes) * per_node
        common = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(per_node),
            "MASTER_ADDR": nodes[0].address,
            "MASTER_PORT": str(_free_port(nodes[0])),
            NODES_VARIABLE: ",".join(node.name for node in nodes for _ in range(per_node)),
        }
        for rank in range(world_size):
            mine, theirs = Pipe()
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % per_node),
                "BENCH_LOG": str(self._log(rank)),
            }
            pid = self._factory.fork(rank // per_node, common | own | self._variables, theirs)
            theirs.close()
            self._pids.append(pid)
            self._pipes.append(mine)

    def _request(self, message: object) -> list[Any]:
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send(message)
            except OSError:
                raise WorldError(f"rank {rank}: {self._ended(rank)}") from None
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + _REQUEST_TIMEOUT_S
        while missing := [rank for rank in range(len(self._pipes)) if rank not in replies]:
            left_s = max(0.0, deadline - time.monotonic())
            ready = wait([self._pipes[rank] for rank in missing], left_s)
            if not ready:
                break
            for rank in missing:
                if self._pipes[rank] in ready:
                    replies[rank] = self._receive(rank)
                    if isinstance(replies[rank], Failure):
                        # The others may wait in a collective for a peer that does not come.
                        deadline = min(deadline, time.monotonic() + _GRACE_S)
        failed = {rank: reply for rank, reply in replies.items() if isinstance(reply, Failure)}
        if failed:
            # A worker that ended is the cause of what the others say.
            cause = min(failed, key=lambda rank: (not failed[rank].has_ended, rank))
            raise WorldError(f"rank {cause}: {failed[cause].error.strip()}")
        if missing:
            raise WorldError(f"ranks {missing} did not answer in {_REQUEST_TIMEOUT_S:.0f} s")
        return [replies[rank] for rank in range(len(self._pipes))]

    def _receive(self, rank: int) -> Any:
        try:
            return self._pipes[rank].recv()
        except (EOFError, OSError):
            return Failure(self._ended(rank), has_ended=True)

    def _ended(self, rank: int) -> str:
        return f"the worker ended; its last words:\n{tail_of(self._log(rank))}"

    def _log(self, rank: int) -> Path:
        return self._factory.folder / f"{self._label}-{rank}.log"


def _free_port(node: Node) -> int:
    if node.has_own_network:
        return next(_ISOLATED_PORTS)
    with socket.socket() as probe:
        probe.bind((node.address, 0))
        port: int = probe.getsockname()[1]
        return port
