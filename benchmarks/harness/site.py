"""Where a worker stands: its rank, and the node of every rank, as its environment says."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mics_core.comm.nodes import NODES_VARIABLE

__all__ = ["Site", "read_site"]


@dataclass(frozen=True, slots=True)
class Site:
    """A worker's place in its world.

    Args:
        rank: Rank in the world.
        nodes_of_ranks: Name of each rank's node; ranks are grouped by node, as many on each.
        master_address: Address of rank 0's node.
    """

    rank: int
    nodes_of_ranks: tuple[str, ...]
    master_address: str

    @property
    def world_size(self) -> int:
        """Workers of all nodes together."""
        return len(self.nodes_of_ranks)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(set(self.nodes_of_ranks))

    @property
    def workers_per_node(self) -> int:
        """Workers on each node (k)."""
        return self.world_size // self.num_nodes


def read_site() -> Site:
    """Read this worker's place from its environment."""
    return Site(
        rank=int(os.environ["RANK"]),
        nodes_of_ranks=tuple(os.environ[NODES_VARIABLE].split(",")),
        master_address=os.environ["MASTER_ADDR"],
    )
