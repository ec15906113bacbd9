"""What the cost model knows of a cluster: nodes, workers, memory, speed and links."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mics_core.planner.layout import ClusterShape, NodeShape
from mics_core.planner.memory import Precision

__all__ = ["Backend", "ClusterProfile", "Link", "Peaks"]

Backend = Literal["gloo", "nccl"]
"""What runs the collectives: it decides how a reduce-scatter goes and what it sends."""

_FLOPS_PER_BYTE: dict[Backend, float] = {"gloo": 10.0, "nccl": 200.0}
_FLOPS_PER_BYTE_IN: dict[Backend, dict[Precision, float]] = {
    "gloo": {"fp32": 10.0, "bf16": 10.0, "fp64": 5.0},
    "nccl": {"fp32": 15.0, "bf16": 200.0, "fp64": 15.0},
}


@dataclass(frozen=True, slots=True)
class Peaks:
    """Largest rates of one worker's matrix products in operations a second, by precision.

    Args:
        fp32: In fp32; none if it is not known, as of the others.
        bf16: In bf16.
        fp64: In fp64.
        lacking: Precisions that the worker has no matrix units for: its rate there is that of fp32
            at best.
    """

    fp32: float | None = None
    bf16: float | None = None
    fp64: float | None = None
    lacking: tuple[Precision, ...] = ()

    def at(self, precision: Precision) -> float | None:
        """Return the rate of a precision, or None if it is not known."""
        return {"fp32": self.fp32, "bf16": self.bf16, "fp64": self.fp64}[precision]


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
    peak_flops_per_s: float | Peaks
    """Largest rate of one worker's matrix products, all workers of the node busy: in every
    precision, or in each."""
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
    the peak: 200 operations a byte on GPUs, 10 on CPUs; from the peak in a precision by what
    workers usually reach in that (on GPUs 15 in fp32 and fp64, on CPUs 5 in fp64)."""
    host_bytes_per_s: float = 10e9
    """Bytes that go between a GPU and the host's memory in a second, one way, all GPUs of the node
    busy; and bytes that the host's update of offloaded states moves for one worker."""
    shares_memory: bool = False
    """Whether workers of one node read each other's memory instead of sending messages, as they do
    on the host (`mics_core.comm.staging`); `intra_node` is then what that brings."""

    @property
    def num_workers(self) -> int:
        """Workers of all nodes together."""
        return self.num_nodes * self.workers_per_node

    def states_peak(self, precision: Precision) -> bool:
        """Whether the peak of one worker in `precision` is known."""
        return not isinstance(self.peak_flops_per_s, Peaks) or (
            self.peak_flops_per_s.at(precision) is not None
        )

    def lacks(self, precision: Precision) -> bool:
        """Whether the workers are known to have no matrix units for `precision`."""
        return isinstance(self.peak_flops_per_s, Peaks) and (
            precision in self.peak_flops_per_s.lacking
        )

    def peak(self, precision: Precision) -> float:
        """Return the largest rate of one worker's matrix products, in operations a second.

        Raises:
            ValueError: It is not known for `precision`.
        """
        if not isinstance(self.peak_flops_per_s, Peaks):
            return self.peak_flops_per_s
        found = self.peak_flops_per_s.at(precision)
        if found is None:
            raise ValueError(f"the peak of {self.name} in {precision} is not known.")
        return found

    def seconds_per_flop(self, precision: Precision) -> float:
        """Return the time of one floating-point operation of the model on one worker."""
        if self.seconds_per_flop_measured is not None:
            return self.seconds_per_flop_measured
        return 1.0 / (self.peak(precision) * self.efficiency)

    def moved_bytes_per_s(self, precision: Precision) -> float:
        """Return the bytes that one worker reads and writes in its memory in a second."""
        if self.memory_bytes_per_s is not None:
            return self.memory_bytes_per_s
        if isinstance(self.peak_flops_per_s, Peaks):
            return self.peak(precision) / _FLOPS_PER_BYTE_IN[self.backend][precision]
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
