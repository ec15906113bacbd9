"""Where partition groups can stand on a cluster, and who is who inside the layout.

A partition group of p workers stands on one node if a node has that many workers. Otherwise it
takes p/k whole nodes of k workers each, so that node boundaries are the same in every group and the
hierarchical collectives of MiCS (Zhang et al., VLDB 2023) know them.

Workers are numbered flat: partition group g holds the workers g·p to g·p + p - 1, and replication
group r holds the workers of rank r in all partition groups.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mics_core.errors import Problem

__all__ = [
    "ClusterShape",
    "LayoutProblem",
    "NodeShape",
    "PlacementShape",
    "allowed_partition_sizes",
    "check_partition_size",
    "claimed_workers",
    "num_groups_held",
    "partition_group_of",
    "placement_of",
    "rank_in_partition_group",
    "replication_group",
]


@dataclass(frozen=True, slots=True)
class NodeShape:
    """One node of the cluster."""

    node_id: str
    """Ray's id of the node."""
    num_workers: int
    """Workers that the node can run (k); 0 for a node that runs none, such as a head."""


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """The nodes of the cluster as they are now; empty before an autoscaler has added any."""

    nodes: tuple[NodeShape, ...] = ()

    @property
    def num_workers(self) -> int:
        """Workers of all nodes together."""
        return sum(node.num_workers for node in self.nodes)

    @property
    def nodes_by_size(self) -> dict[int, int]:
        """Number of nodes with k workers, by k, largest k first; nodes without workers left out."""
        counts = Counter(node.num_workers for node in self.nodes if node.num_workers > 0)
        return dict(sorted(counts.items(), reverse=True))


@dataclass(frozen=True, slots=True)
class PlacementShape:
    """What one partition group takes of the cluster; num_nodes · workers_per_node = p."""

    num_nodes: int
    workers_per_node: int


@dataclass(frozen=True, slots=True)
class LayoutProblem:
    """Why a partition size cannot be placed."""

    value: str
    """What was asked for, and of which cluster."""
    rule: str
    """The rule it breaks, one sentence."""
    remedy: str
    """What to do about it, one sentence."""

    def __str__(self) -> str:
        return f"{self.value} is refused: {self.rule} {self.remedy}"

    def as_problem(self, field: str = "partition_size") -> Problem:
        """Return it as a problem of the specification's `field`."""
        return Problem(field, self.value, self.rule, self.remedy)


def placement_of(partition_size: int, cluster: ClusterShape) -> PlacementShape | None:
    """Return what a partition group of p workers takes, or None if the cluster cannot hold it.

    One node is preferred, then the fewest nodes. Of a cluster without workers nothing is known yet,
    so one node is assumed.

    Args:
        partition_size: p, at least 1.
        cluster: The nodes.
    """
    nodes_by_size = cluster.nodes_by_size
    if not nodes_by_size or partition_size <= max(nodes_by_size):
        return PlacementShape(1, partition_size)
    for workers, num_nodes in nodes_by_size.items():
        if partition_size % workers == 0 and partition_size // workers <= num_nodes:
            return PlacementShape(partition_size // workers, workers)
    return None


def num_groups_held(partition_size: int, cluster: ClusterShape) -> int:
    """Return how many partition groups of p workers stand on the cluster at once.

    All are placed alike (`placement_of`): where one node holds a group, no other group is put
    together from smaller nodes.
    """
    placement = placement_of(partition_size, cluster)
    if placement is None:
        return 0
    nodes_by_size = cluster.nodes_by_size
    if placement.num_nodes > 1:
        return nodes_by_size[placement.workers_per_node] // placement.num_nodes
    return sum(count * (workers // partition_size) for workers, count in nodes_by_size.items())


def claimed_workers(partition_size: int, cluster: ClusterShape) -> float:
    """Return the workers that one partition group of p takes from the cluster.

    On one node that is its share of the nodes that hold such groups, workers that are too few for
    another group included: on nodes of 8 a group of 5 takes 8 workers, one of 3 takes 4. Over
    several nodes it is p.
    """
    placement = placement_of(partition_size, cluster)
    if placement is not None and placement.num_nodes == 1:
        sizes = [each for each in cluster.nodes_by_size.items() if each[0] >= partition_size]
        if sizes:
            workers = sum(size * count for size, count in sizes)
            return workers / num_groups_held(partition_size, cluster)
    return float(partition_size)


def check_partition_size(partition_size: int, cluster: ClusterShape) -> LayoutProblem | None:
    """Return why no partition group of p workers can stand on the cluster, or None if one can.

    A cluster without workers cannot be checked and raises no problem.
    """
    if partition_size < 1:
        return LayoutProblem(
            value=f"partition_size {partition_size}",
            rule="a partition group has at least one worker.",
            remedy="Choose a positive number, or 'auto'.",
        )
    if placement_of(partition_size, cluster) is not None:
        return None
    return LayoutProblem(
        value=f"partition_size {partition_size} on {_described(cluster)}",
        rule="a partition group fits on one node or takes whole nodes of equal size.",
        remedy=_remedy(partition_size, cluster),
    )


def allowed_partition_sizes(cluster: ClusterShape) -> tuple[int, ...]:
    """Return every p of which one partition group fits, ascending; empty if nothing is known."""
    return tuple(
        size
        for size in range(1, cluster.num_workers + 1)
        if placement_of(size, cluster) is not None
    )


def partition_group_of(worker: int, partition_size: int) -> int:
    """Return the partition group of a worker in flat numbering."""
    return worker // partition_size


def rank_in_partition_group(worker: int, partition_size: int) -> int:
    """Return a worker's rank in its partition group; it is also its replication group's index."""
    return worker % partition_size


def replication_group(rank: int, num_groups: int, partition_size: int) -> range:
    """Return the workers, in flat numbering, that hold the shard of `rank`, by partition group.

    Args:
        rank: Rank inside the partition group, in range(partition_size).
        num_groups: Partition groups of the generation.
        partition_size: p.

    Raises:
        ValueError: The partition group has no such rank.
    """
    if not 0 <= rank < partition_size:
        raise ValueError(f"rank {rank} is not one of the group's {partition_size} workers.")
    return range(rank, num_groups * partition_size, partition_size)


def _described(cluster: ClusterShape) -> str:
    parts = [f"{count} × {workers}" for workers, count in cluster.nodes_by_size.items()]
    return f"nodes of {' and '.join(parts)} workers"


def _remedy(partition_size: int, cluster: ClusterShape) -> str:
    """Name the nearest sizes that fit; one worker always does, so there is one below."""
    larger = range(partition_size + 1, cluster.num_workers + 1)
    below = next(size for size in range(partition_size - 1, 0, -1) if placement_of(size, cluster))
    above = next((size for size in larger if placement_of(size, cluster)), None)
    nearest = str(below) if above is None else f"{below} or {above}"
    return f"Choose {nearest}, leave it at 'auto', or add nodes."
