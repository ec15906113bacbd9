"""The strategy of a job that no planner has looked at: what it asks for, else the paper's."""

from __future__ import annotations

from mics_core.comm.nodes import NodeGrid
from mics_core.errors import LayoutError, Problem
from mics_core.planner.strategy import Route, Strategy, default_strategy
from mics_core.spec.job import EngineSpec

__all__ = ["settle_strategy"]


def settle_strategy(engine: EngineSpec, grid: NodeGrid) -> Strategy:
    """Fill in what `engine` leaves open.

    Args:
        engine: The job's choices.
        grid: The partition group's workers by node.

    Raises:
        LayoutError: `node` is asked for in a group without several nodes of several workers.
    """
    for field in ("reshard", "accumulation"):
        if getattr(engine, field) == "node" and not grid.has_stages:
            raise LayoutError(
                [
                    Problem(
                        f"engine.{field}",
                        "node",
                        f"the partition group takes {grid.num_nodes} node(s) of"
                        f" {grid.workers_per_node} worker(s), so there is no stage inside a node.",
                        "Leave it at 'auto', or choose a partition size over several whole nodes.",
                    )
                ]
            )
    paper = default_strategy(grid.num_workers, grid.workers_per_node)
    route: Route = paper.gather_block if engine.hierarchical != "never" else "flat"
    return Strategy(
        reshard=paper.reshard if engine.reshard == "auto" else engine.reshard,
        accumulation=paper.accumulation if engine.accumulation == "auto" else engine.accumulation,
        gather_block=route,
        gather_root=route,
        scatter_block=route,
        scatter_root=route,
    )
