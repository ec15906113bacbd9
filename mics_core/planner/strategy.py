"""How a partition group moves its model states: the choices the engine offers, as plain values.

None of them changes what is computed; they trade memory against bytes and bytes against messages.
The planner picks them (`mics_core.planner.candidates`), a job may fix each of them by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Accumulation", "Reshard", "Route", "Strategy", "default_strategy"]

Route = Literal["flat", "hierarchical"]
"""How a collective of a partition group over several nodes runs: one ring over all workers, or an
inter-node and an intra-node stage (Zhang et al., "MiCS", VLDB 2023, section 3.2)."""

Reshard = Literal["always", "node", "never"]
"""What stays of a gathered unit until the step's end: `always` nothing but the shard; `node` what
the inter-node stage brought, 1/k of the unit, so that nodes exchange parameters once a step;
`never` the whole unit, so that each unit is gathered once a step."""

Accumulation = Literal["group", "node"]
"""Over what a micro-batch's gradient is scattered: `group` down to the worker's own shard; `node`
inside the node alone, 1/k of the gradient a worker, with the inter-node stage once a step."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """The choices of one partition group; the same on all its workers.

    Args:
        reshard: What stays of the gathered parameters within a step. `node` needs hierarchical
            gathers.
        accumulation: Where micro-batches add up. `node` needs hierarchical scatters.
        gather_block: Route of the all-gather of a block.
        gather_root: Route of the all-gather of what is outside the blocks.
        scatter_block: Route of the reduce-scatter of a block.
        scatter_root: Route of the reduce-scatter of what is outside the blocks.
    """

    reshard: Reshard = "always"
    accumulation: Accumulation = "group"
    gather_block: Route = "flat"
    gather_root: Route = "flat"
    scatter_block: Route = "flat"
    scatter_root: Route = "flat"

    def __post_init__(self) -> None:
        if self.reshard == "node":
            assert self.gather_block == self.gather_root == "hierarchical", self
        if self.accumulation == "node":
            assert self.scatter_block == self.scatter_root == "hierarchical", self


def default_strategy(partition_size: int, workers_per_node: int) -> Strategy:
    """Return the strategy of the paper, for when nothing is known about the network.

    Args:
        partition_size: p.
        workers_per_node: k, the group's workers on each of its nodes.
    """
    route: Route = "hierarchical" if 1 < workers_per_node < partition_size else "flat"
    return Strategy(gather_block=route, gather_root=route, scatter_block=route, scatter_root=route)
