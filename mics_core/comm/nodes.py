"""Which workers of a partition group share a node, read from where they were placed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["NODES_VARIABLE", "NodeGrid", "node_grid"]

NODES_VARIABLE = "MICS_NODES_OF_RANKS"
"""Environment variable of every worker: the node of each rank, separated by commas."""


@dataclass(frozen=True, slots=True)
class NodeGrid:
    """The workers of a group as a grid: a row a node, a column a local rank.

    Rank = node · workers_per_node + local rank.

    Args:
        num_nodes: Rows.
        workers_per_node: Columns (k).
    """

    num_nodes: int
    workers_per_node: int

    @property
    def num_workers(self) -> int:
        """Workers of the group (p)."""
        return self.num_nodes * self.workers_per_node

    @property
    def has_stages(self) -> bool:
        """Whether collectives can go in an inter-node and an intra-node stage: p > k > 1."""
        return self.num_nodes > 1 and self.workers_per_node > 1

    def row(self, node: int) -> range:
        """Return the ranks on a node."""
        return range(node * self.workers_per_node, (node + 1) * self.workers_per_node)

    def column(self, local_rank: int) -> range:
        """Return the ranks of the same local rank on all nodes."""
        return range(local_rank, self.num_nodes * self.workers_per_node, self.workers_per_node)


def node_grid(nodes: Sequence[str]) -> NodeGrid:
    """Arrange ranks by node.

    Args:
        nodes: The node of each rank. Ranks of one node that do not stand together, or nodes with
            unequal numbers, have no grid of their own; each rank then counts as a node, and
            collectives go over all of them in one ring.
    """
    runs = [(node, len(list(ranks))) for node, ranks in groupby(nodes)]
    sizes = {size for _, size in runs}
    if len(sizes) == 1 and len({node for node, _ in runs}) == len(runs):
        return NodeGrid(len(runs), sizes.pop())
    return NodeGrid(len(nodes), 1)
