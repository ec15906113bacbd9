"""What the cost model knows of a cluster: nodes, workers, memory, speed and links."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mics_core.planner.layout import ClusterShape, NodeShape

__all__ = ["Backend", "ClusterProfile", "Link"]

Backend = Literal["gloo", "nccl"]
"""What runs the collectives: it decides how a reduce-scatter goes and what it sends."""

_FLOPS_PER_BYTE: dict[Backend, float] = {"gloo": 10.0, "nccl": 200.0}


@dataclass(frozen=True, slots=True)
class Link:
    """A kind of link, alpha-beta: a message of n bytes takes latency + n / bandwidth."""

    bandwidth_bytes_per_s: float
    """One direction."""
    latency_s: float
    """Time of a message without content; every round of a collective costs it once."""

    def time_s(self, num_bytes: float) -> float:
        """Return the time of one message."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class ClusterProfile:
    """A cluster of equal nodes."""

    name: str
    """A name for people."""
    num_nodes: int
    """Nodes with workers."""
    workers_per_node: int
    """Workers of each node (k)."""
    memory_bytes: int
    """Memory of one worker."""
    peak_flops_per_s: float
    """Largest rate of one worker's matrix products, all workers of the node busy."""
    intra_node: Link
    """Between workers of one node; the bandwidth is that of each worker."""
    inter_node: Link
    """Between nodes; the bandwidth is that of a whole node, shared by its workers."""
    efficiency: float = 0.5
    """Share of the peak that a model's layers reach when nothing waits for communication."""
    backend: Backend = "nccl"
    """What runs the collectives."""
    seconds_per_flop_measured: float | None = None
    """Measured time of one operation of the model; goes before peak and efficiency."""
    memory_bytes_per_s: float | None = None
    """Bytes that one worker reads and writes in its memory in a second. It bounds the optimizer's
    update and, on CPUs, what messages cost the processor. Where it is not known it is taken from
    the peak: 200 operations a byte on GPUs, 10 on CPUs."""
    host_bytes_per_s: float = 10e9
    """Bytes that go between a GPU and the host's memory in a second, one way, all GPUs of the node
    busy; and bytes that the host's update of offloaded states moves for one worker."""

    @property
    def num_workers(self) -> int:
        """Workers of all nodes together."""
        return self.num_nodes * self.workers_per_node

    @property
    def seconds_per_flop(self) -> float:
        """Time of one floating-point operation of the model on one worker."""
        if self.seconds_per_flop_measured is not None:
            return self.seconds_per_flop_measured
        return 1.0 / (self.peak_flops_per_s * self.efficiency)

    @property
    def moved_bytes_per_s(self) -> float:
        """Bytes that one worker reads and writes in its memory in a second."""
        if self.memory_bytes_per_s is not None:
            return self.memory_bytes_per_s
        return self.peak_flops_per_s / _FLOPS_PER_BYTE[self.backend]

    def shape(self) -> ClusterShape:
        """Return its nodes as the placement rules take them."""
        return ClusterShape(
            tuple(
                NodeShape(f"{self.name}-{index}", self.workers_per_node)
                for index in range(self.num_nodes)
            )
        )

    def with_nodes(self, num_nodes: int, workers_per_node: int | None = None) -> ClusterProfile:
        """Return the same cluster with other numbers of nodes and workers."""
        return replace(
            self,
            num_nodes=num_nodes,
            workers_per_node=workers_per_node or self.workers_per_node,
        )
