"""The connections of a replication group, and what runs over them.

[Note: the second hop by node]
Members stand in the ring node by node, so that only one of a node's members sends out of it. If
every node has the same number m > 1 of them, the all-reduce goes in three stages: a reduce-scatter
inside the node, m all-reduces between nodes in parallel, one for each local place, and an
all-gather inside the node. A node's link then carries 2(n-1)/n of the gradient for n nodes, where
one ring over N members carries 2(N-1)/N. All stages work in place on the caller's buffer. Each has
process groups of its own, so that one bucket may be between nodes while the next is inside.

[Note: the second hop in shared memory]
Where the members of a node share the memory of their buffers (see the note in `shared`), the stages
inside the node send nothing: a member reads its part of the others' buffers and adds it to its own,
and later reads the parts that the others have summed up. Each stage has a door. Behind the first
everybody has the gradient that is to be summed up. Behind the second everybody has its part, and
nobody reads what the last stage overwrites. So that nobody changes a gradient that another still
reads, all pass the second door once more after the last bucket: `ReplicationGroup.end_reading`. A
member whose group has broken passes none. It goes through the next generation's start together with
all who still read before it writes a gradient, and what they have read they do not commit.
All members on one node have the first and the last stage alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch

from mics_core.comm.connections import Connections
from mics_core.comm.direct import exchange_directly, gather_directly
from mics_core.comm.nodes import NodeGrid
from mics_core.comm.shared import Neighbours
from mics_core.comm.stages import Scratch

__all__ = ["NUM_DOORS", "STAGES", "Ring"]

_SUMMING, _HANDING_ROUND = range(2)
NUM_DOORS = 2
"""Between members that share memory: of the first stage and of the last."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The connected process groups.

    Args:
        order: The members' ranks in the order of the ring: node by node.
        grid: The members by node, in that order.
        whole: All members.
        inter: The members of this worker's place on every node; none without stages.
        scatters: The members of this worker's node, for the first stage; none without stages, and
            none where they share memory.
        gathers: The members of this worker's node again, for the last stage.
        neighbours: The members of this worker's node in their order, if they share memory.
    """

    order: tuple[int, ...]
    grid: NodeGrid
    whole: Connections
    inter: Connections | None = None
    scatters: Connections | None = None
    gathers: Connections | None = None
    neighbours: Neighbours | None = None

    @property
    def connections(self) -> list[Connections]:
        """Those of all process groups."""
        groups = (self.whole, self.inter, self.scatters, self.gathers)
        return [group for group in groups if group is not None]

    def shares(self, flat: torch.Tensor) -> bool:
        """Whether a buffer is in memory that the members of this node share."""
        return self.neighbours is not None and self.neighbours.memory.offset_of(flat) is not None

    def end_reading(self) -> None:
        """Wait until nobody on this node reads another's memory any more."""
        if self.neighbours is not None:
            self.neighbours.pass_door(_HANDING_ROUND)

    def limit(self, timeout_s: float) -> None:
        """Set the time limit of everything that begins from now on."""
        for connections in self.connections:
            connections.group._set_default_timeout(timedelta(seconds=timeout_s))
        if self.neighbours is not None:
            self.neighbours.limit(timeout_s)

    def close(self) -> None:
        """Drop the connections."""
        if self.neighbours is not None:
            self.neighbours.close()
        for connections in self.connections:
            connections.close()


def _parts(flat: torch.Tensor, ring: Ring) -> torch.Tensor:
    """Return the part of each of a node's members: a row each, of equal length."""
    length = flat.numel() // ring.grid.workers_per_node
    return flat[: ring.grid.workers_per_node * length].view(ring.grid.workers_per_node, length)


def _scatter_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    parts = _parts(flat, ring)
    if ring.shares(flat):
        assert ring.neighbours is not None
        ring.neighbours.pass_door(_SUMMING)
        mine = parts[ring.neighbours.place]
        for other in ring.neighbours.others if mine.numel() else ():
            mine.add_(ring.neighbours.same_of(other, mine))
        return
    if ring.scatters is None or not parts.numel():
        return
    place = ring.scatters.group.rank()
    received = scratch.take(flat, parts.numel()).view_as(parts)
    # gloo's own reduce-scatter sends twice the bytes; see [Note: collectives in stages].
    exchange_directly(received, parts, ring.scatters.group)
    for other, row in enumerate(received):
        if other != place:
            parts[place].add_(row)


def _reduce_across(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    parts = _parts(flat, ring)
    if ring.shares(flat):
        assert ring.neighbours is not None
        place = ring.neighbours.place
    elif ring.scatters is not None:
        place = ring.scatters.group.rank()
    else:
        ring.whole.group.allreduce([flat]).wait()
        return
    if parts.numel() and ring.inter is not None:
        ring.inter.group.allreduce([parts[place]]).wait()
    if rest := flat.numel() - parts.numel():
        # Callers pad their buffers (`mics_core.engine.gradients`), so this is rare and small.
        ring.whole.group.allreduce([flat[-rest:]]).wait()


def _gather_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    parts = _parts(flat, ring)
    if ring.shares(flat):
        assert ring.neighbours is not None
        ring.neighbours.pass_door(_HANDING_ROUND)
        for other in ring.neighbours.others if parts.numel() else ():
            parts[other].copy_(ring.neighbours.same_of(other, parts[other]))
        return
    if ring.gathers is not None and parts.numel():
        gather_directly(parts, parts[ring.gathers.group.rank()], ring.gathers.group)


STAGES = (_scatter_inside, _reduce_across, _gather_inside)
"""An all-reduce: inside the node, between nodes, inside the node."""
