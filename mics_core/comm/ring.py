"""The connections of a replication group, and what runs over them.

[Note: the second hop by node]
Members stand in the ring node by node, so that only one of a node's members sends out of it. If
every node has the same number m > 1 of them, the all-reduce goes in three stages: a reduce-scatter
inside the node, m all-reduces between nodes in parallel, one for each local place, and an
all-gather inside the node. A node's link then carries 2(n-1)/n of the gradient for n nodes, where
one ring over N members carries 2(N-1)/N. All stages work in place on the caller's buffer. Each has
process groups of its own, so that one bucket may be between nodes while the next is inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mics_core.comm.copies import close_backend
from mics_core.comm.direct import exchange_directly, gather_directly
from mics_core.comm.nodes import NodeGrid
from mics_core.comm.stages import Scratch

__all__ = ["STAGES", "Ring"]


@dataclass(frozen=True, slots=True)
class Ring:
    """The connected process groups (`dist.ProcessGroupGloo`, whose collectives torch's stubs lack).

    Args:
        order: The members' ranks in the order of the ring: node by node.
        grid: The members by node, in that order.
        whole: All members.
        scatters: The members of this worker's node, for the first stage; none without stages.
        inter: The members of this worker's place on every node; none without stages.
        gathers: The members of this worker's node again, for the last stage.
    """

    order: tuple[int, ...]
    grid: NodeGrid
    whole: Any
    scatters: Any = None
    inter: Any = None
    gathers: Any = None

    @property
    def backends(self) -> list[Any]:
        """All process groups."""
        groups = (self.whole, self.scatters, self.inter, self.gathers)
        return [group for group in groups if group is not None]

    def close(self) -> None:
        """Drop the connections."""
        for backend in self.backends:
            close_backend(backend)


def _parts(flat: torch.Tensor, ring: Ring) -> torch.Tensor:
    """Return the part of each of a node's members: a row each, of equal length."""
    length = flat.numel() // ring.grid.workers_per_node
    return flat[: ring.grid.workers_per_node * length].view(ring.grid.workers_per_node, length)


def _scatter_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.scatters is None:
        return
    parts = _parts(flat, ring)
    if not parts.numel():
        return
    place = ring.scatters.rank()
    received = scratch.take(flat, parts.numel()).view_as(parts)
    # gloo's own reduce-scatter sends twice the bytes; see [Note: collectives in stages].
    exchange_directly(received, parts, ring.scatters)
    for other, row in enumerate(received):
        if other != place:
            parts[place].add_(row)


def _reduce_across(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.inter is None:
        ring.whole.allreduce([flat]).wait()
        return
    parts = _parts(flat, ring)
    if parts.numel():
        ring.inter.allreduce([parts[ring.scatters.rank()]]).wait()
    if rest := flat.numel() - parts.numel():
        # Callers pad their buffers (`mics_core.engine.gradients`), so this is rare and small.
        ring.whole.allreduce([flat[-rest:]]).wait()


def _gather_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.gathers is None:
        return
    parts = _parts(flat, ring)
    if parts.numel():
        gather_directly(parts, parts[ring.gathers.rank()], ring.gathers)


STAGES = (_scatter_inside, _reduce_across, _gather_inside)
"""An all-reduce: inside the node, between nodes, inside the node."""
