"""Settles a job's partition size against the living cluster, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from mics_core.cluster.placement import cluster_shape
from mics_core.errors import LayoutError, Problem
from mics_core.planner.layout import check_partition_size
from mics_core.planner.partition import NoPartitionFits, choose_partition_size
from mics_core.spec.job import JobSpec

__all__ = ["Layout", "settle_layout"]

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """The partition size of a job, and why."""

    partition_size: int
    reason: str


def settle_layout(spec: JobSpec) -> Layout:
    """Check the partition size that `spec` asks for, or choose one.

    Raises:
        LayoutError: The cluster cannot hold it, or nothing fits.
        SpecificationError: The model cannot be built.
    """
    if spec.partition_size != "auto":
        problem = check_partition_size(spec.partition_size, cluster_shape(spec.resources))
        if problem is not None:
            raise LayoutError([problem.as_problem()])
        return Layout(spec.partition_size, "The specification asks for it.")
    return _choose(spec)


def _choose(spec: JobSpec) -> Layout:
    # Imported here: only this choice needs torch.
    from mics_core.engine.counting import count_needs

    needs = count_needs(spec)
    choice = choose_partition_size(
        model_state_bytes=needs.model_state_bytes,
        largest_unit_bytes=needs.largest_unit_bytes,
        activation_bytes=needs.activation_bytes,
        worker_memory_bytes=_worker_memory_bytes(spec),
        cluster=cluster_shape(spec.resources),
        batch_problem=lambda size: _batch_problem(spec, size),
    )
    if isinstance(choice, NoPartitionFits):
        raise LayoutError([choice.problem.as_problem()])
    return Layout(choice.partition_size, choice.reason)


def _batch_problem(spec: JobSpec, partition_size: int) -> str | None:
    try:
        spec.num_micro_batches(partition_size)
    except ValueError as error:
        return str(error)
    return None


def _worker_memory_bytes(spec: JobSpec) -> int:
    """Memory of one worker: as the specification says, or an equal share of the smallest node."""
    if spec.resources.memory_gib is not None:
        return int(spec.resources.memory_gib * _GIB)
    if spec.resources.gpus:
        raise LayoutError(
            [
                Problem(
                    "resources.memory_gib",
                    "(nothing)",
                    "Ray does not tell the memory of a GPU, which partition_size 'auto' needs.",
                    "Set resources.memory_gib to the memory of one GPU, or partition_size to a"
                    " number.",
                )
            ]
        )
    workers = {node.node_id: node.num_workers for node in cluster_shape(spec.resources).nodes}
    shares = [
        int(node["Resources"].get("memory", 0)) // workers[node["NodeID"]]
        for node in ray.nodes()
        if node["NodeID"] in workers
    ]
    if not shares:
        raise LayoutError(
            [
                Problem(
                    "partition_size",
                    "auto",
                    "no living node can hold a worker, so its memory is not known.",
                    "Set resources.memory_gib or partition_size, or add a node.",
                )
            ]
        )
    return min(shares)
