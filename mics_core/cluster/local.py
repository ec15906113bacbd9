"""A Ray cluster of simulated nodes on this machine, for demonstrations and tests.

Every node is a real raylet with processes of its own, so that losing a node is losing processes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from types import TracebackType
from typing import Any, Self

import psutil
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

__all__ = ["LocalCluster", "free_port"]

_KILL_WAIT_S = 10.0


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalCluster:
    """One head without worker slots and a number of worker nodes.

    Args:
        num_nodes: Worker nodes at the start.
        workers_per_node: CPU slots of each of them.
    """

    def __init__(self, num_nodes: int, workers_per_node: int):
        self._num_nodes = num_nodes
        self._workers_per_node = workers_per_node
        self._cluster: Cluster | None = None
        self._nodes: dict[str, Any] = {}
        self._processes: list[psutil.Process] = []

    def start(self) -> None:
        """Start the head, with the dashboard that takes jobs, and the nodes."""
        # Runs of a demonstration are nobody's usage statistics.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._cluster = Cluster(initialize_head=True, head_node_args=self._head_arguments())
        try:
            for _ in range(self._num_nodes):
                self.add_node()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """Address for `ray.init`."""
        assert self._cluster is not None
        return str(self._cluster.address)

    @property
    def dashboard_url(self) -> str:
        """Address of the Ray Jobs API."""
        assert self._cluster is not None
        return f"http://{self._cluster.webui_url}"

    @property
    def node_ids(self) -> list[str]:
        """Ray's ids of the living worker nodes, oldest first.

        One that is drained ends by itself as soon as nothing runs on it.
        """
        return [node_id for node_id, node in self._nodes.items() if _lives(node)]

    def add_node(self) -> str:
        """Start one more worker node; return its id."""
        assert self._cluster is not None
        node = self._cluster.add_node(num_cpus=self._workers_per_node)
        self._nodes[node.node_id] = node
        return str(node.node_id)

    def processes_of(self, node_id: str) -> list[psutil.Process]:
        """Return a node's raylet and everything that runs on it."""
        return self._processes_of(self._nodes[node_id])

    def kill_node(self, node_id: str) -> list[int]:
        """End a node's raylet and everything on it with SIGKILL; return the process ids."""
        assert self._cluster is not None
        node = self._nodes.pop(node_id)
        victims = self._processes_of(node)
        for victim in victims:
            _signal(victim, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        psutil.wait_procs(victims, timeout=_KILL_WAIT_S)
        return [victim.pid for victim in victims]

    def stop(self) -> None:
        """End every process of the cluster with SIGKILL, and wait until all are gone."""
        if self._cluster is None:
            return
        nodes = [*self._nodes.values(), self._cluster.head_node]
        processes = [process for node in nodes for process in self._processes_of(node)]
        # Asked to end, each takes a second, one after the other, and some never do.
        for process in processes:
            _signal(process, signal.SIGKILL)
        self._cluster.shutdown()
        self._cluster = None
        self._nodes.clear()
        psutil.wait_procs(processes, timeout=_KILL_WAIT_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _head_arguments(self) -> dict[str, Any]:
        return {
            "num_cpus": 0,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": free_port(),
            "dashboard_agent_listen_port": free_port(),
        }

    @staticmethod
    def _processes_of(node: Any) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for infos in node.all_processes.values():
            for info in infos:
                process: subprocess.Popen[bytes] = info.process
                try:
                    parent = psutil.Process(process.pid)
                    found += [parent, *parent.children(recursive=True)]
                except psutil.NoSuchProcess:
                    continue
        return found


def _lives(node: Any) -> bool:
    raylets = node.all_processes[PROCESS_TYPE_RAYLET]
    return all(info.process.poll() is None for info in raylets)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
