"""Places partition groups on nodes.

A group is first reserved as one Ray placement group, because a pending placement group is what
makes an autoscaler add nodes. Its nodes are then known, the reservation is given up, and the Ray
Train run asks for the same room on exactly these nodes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from mics_core.planner.layout import ClusterShape, NodeShape, placement_of
from mics_core.spec.job import ResourcesSpec

__all__ = ["Reservation", "cluster_shape", "reserve", "worker_resources"]


def worker_resources(resources: ResourcesSpec) -> dict[str, float]:
    """Return Ray's resource names and amounts for one worker."""
    needed = {"CPU": resources.cpus, **resources.custom}
    if resources.gpus:
        needed["GPU"] = float(resources.gpus)
    return needed


def cluster_shape(resources: ResourcesSpec) -> ClusterShape:
    """Return how many workers each living node of the cluster can hold at all."""
    needed = worker_resources(resources)
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has = node["Resources"]
        fits = int(min(has.get(name, 0.0) / amount for name, amount in needed.items() if amount))
        if fits:
            nodes.append(NodeShape(node["NodeID"], fits))
    return ClusterShape(tuple(nodes))


@dataclass(slots=True)
class Reservation:
    """Room for one partition group."""

    group: PlacementGroup
    workers_per_bundle: int

    async def wait(self) -> tuple[str, ...]:
        """Wait until nodes are found; return the node id of each worker, by rank."""
        await self.group.ready()
        table: dict[str, Any] = await asyncio.to_thread(placement_group_table, self.group)
        nodes = [node for _, node in sorted(table["bundles_to_node_id"].items())]
        return tuple(node for node in nodes for _ in range(self.workers_per_bundle))

    def is_placed(self) -> bool:
        """Whether nodes have been found."""
        table: dict[str, Any] = placement_group_table(self.group)
        return bool(table.get("state") == "CREATED")

    def release(self) -> None:
        """Give the room up."""
        remove_placement_group(self.group)


def reserve(partition_size: int, resources: ResourcesSpec, name: str) -> Reservation:
    """Ask for room for a partition group: on one node if a node holds it, else on whole nodes."""
    shape = placement_of(partition_size, cluster_shape(resources))
    num_nodes, workers = (shape.num_nodes, shape.workers_per_node) if shape else (1, partition_size)
    bundle = {key: amount * workers for key, amount in worker_resources(resources).items()}
    strategy = "STRICT_SPREAD" if num_nodes > 1 else "STRICT_PACK"
    return Reservation(placement_group([bundle] * num_nodes, strategy, name=name), workers)
