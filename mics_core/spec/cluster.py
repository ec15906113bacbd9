"""The cluster file: what the planner knows of a cluster, written by hand or by `mics probe`."""

from __future__ import annotations

from pydantic import Field

from mics_core.spec.job import SpecModel

__all__ = ["ClusterSpec", "LinkSpec"]


class LinkSpec(SpecModel):
    """A kind of link, alpha-beta: a message of n bytes takes latency + n / bandwidth."""

    bandwidth_gbit_per_s: float = Field(gt=0.0)
    """Bandwidth in Gbit/s, one direction, while all workers of the node use it at once."""
    latency_us: float = Field(ge=0.0)
    """Time of a message without content, in microseconds; one round of a ring costs it once."""


class ClusterSpec(SpecModel):
    """A cluster of equal nodes."""

    name: str = Field(min_length=1, max_length=100)
    """A name for people."""
    nodes: int = Field(gt=0)
    """Nodes with workers."""
    workers_per_node: int = Field(gt=0)
    """Workers of each node (k): its GPUs, or as many CPU workers as it holds."""
    memory_gib: float = Field(gt=0.0)
    """Memory of one worker in GiB."""
    peak_tflops: float = Field(gt=0.0)
    """Largest rate of one worker's matrix products in TFLOP/s, all workers of the node busy."""
    efficiency: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of `peak_tflops` that a model's layers reach when nothing waits for communication."""
    intra_node: LinkSpec
    """Between workers of one node; the bandwidth is that of each worker."""
    inter_node: LinkSpec
    """Between nodes; the bandwidth is that of a whole node, shared by its workers."""
