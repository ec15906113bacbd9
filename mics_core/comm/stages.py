"""All-gather and reduce-scatter of a partition group, flat and hierarchical.

[Note: collectives in stages]
A partition group of p workers stands on p/k nodes of k workers, ranks in node order. A unit of M
bytes has p shards of M/p.

All-gather (Zhang et al., "MiCS", VLDB 2023, section 3.2):
1. Inter-node: the workers of each local rank gather their shards: a *column* of p/k shards, in node
   order. k such gathers run in parallel and share the node's link, which carries (p-k)/p · M.
2. Intra-node: for each node block j the k workers gather the j-th shard of their columns. The ranks
   of a block stand together, so the result is the j-th slice of the output, and nothing has to be
   put in order afterwards. NCCL launches the p/k gathers as one batch.

Reduce-scatter is the mirror image: intra-node first, one scatter a node block, which leaves a
column of p/k partial sums; then the workers of each local rank scatter their columns.

Copies: a column is the only buffer beside input and output, 1/k of the unit. The inter-node stage
writes straight into it, the intra-node stage reads its slices and writes straight into the output.
In each gather the worker's own shard is copied into its place (it is there already in the flat
gather). On the host the workers of one node read what the others put into memory that they share
(`mics_core.comm.staging`), all blocks at once; where they can share none they send each other
messages (`mics_core.comm.direct`). And gloo's reduce-scatter sends all-reduce bytes, twice what it
must; so on the host in a scatter between nodes each worker sends every other its part, which needs
a receive buffer of the input's size, and sums up.

A flat scatter over nodes of several workers is a ring on the host. An all-to-all would send what
each worker of a node has for other nodes by itself: k(p-k)/p · M, 2.0 M out of each of 2 nodes of
4. In the ring, ranks in node order, one worker of a node sends to the next node: (p-1)/p · M,
0.875 M. It takes p - 1 rounds of messages instead of one, and two buffers of a shard's size instead
of one of the unit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mics_core.comm.direct import backend_of, exchange_directly, gather_directly
from mics_core.comm.nodes import NodeGrid
from mics_core.comm.staging import Staging

__all__ = ["Scratch", "StageGroups", "gather_column", "gather_flat", "gather_rows"]
__all__ += ["scatter_columns", "scatter_flat", "scatter_rows"]


@dataclass(frozen=True, slots=True)
class StageGroups:
    """The process groups of one kind of collective; used by one thread or stream alone.

    Args:
        whole: All workers of the partition group.
        grid: Its workers by node.
        intra: The workers of this worker's node; none without stages.
        inter: The workers of this worker's local rank; none without stages.
        staging: Memory shared by the workers of this worker's node; none on a GPU, with one worker
            a node, or where it cannot be had.
    """

    whole: dist.ProcessGroup
    grid: NodeGrid
    intra: dist.ProcessGroup | None = None
    inter: dist.ProcessGroup | None = None
    staging: Staging | None = None

    @property
    def members(self) -> list[dist.ProcessGroup]:
        """All of them."""
        return [group for group in (self.whole, self.intra, self.inter) if group is not None]


class Scratch:
    """A buffer that grows to the largest size asked for and is used by one collective at a time."""

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None

    def take(self, like: torch.Tensor, num_elements: int) -> torch.Tensor:
        """Return `num_elements` of the dtype and device of `like`; their values are undefined."""
        buffer = self._buffer
        if (
            buffer is None
            or buffer.numel() < num_elements
            or buffer.dtype != like.dtype
            or buffer.device != like.device
        ):
            buffer = self._buffer = like.new_empty(num_elements)
        return buffer[:num_elements]


def gather_flat(output: torch.Tensor, shard: torch.Tensor, groups: StageGroups) -> None:
    """Gather `shard` (n) of all workers into `output` (p · n) by rank."""
    if groups.staging is not None and groups.grid.num_nodes == 1:
        groups.staging.gather(output.view(groups.grid.num_workers, -1), shard)
        return
    if output.device.type == "cpu" and groups.grid.num_nodes == 1:
        gather_directly(output.view(groups.grid.num_workers, -1), shard, backend_of(groups.whole))
        return
    dist.all_gather_single(output, shard, group=groups.whole)


def gather_column(shard: torch.Tensor, groups: StageGroups) -> torch.Tensor:
    """Gather `shard` (n) over the nodes: the inter-node stage. Returns (p/k · n) by node."""
    assert groups.inter is not None
    column = shard.new_empty(groups.grid.num_nodes * shard.numel())
    dist.all_gather_single(column, shard, group=groups.inter)
    return column


def gather_rows(output: torch.Tensor, column: torch.Tensor, groups: StageGroups) -> None:
    """Gather columns (p/k · n) inside the node into `output` (p · n): the intra-node stage."""
    assert groups.intra is not None
    blocks = output.view(groups.grid.num_nodes, -1)
    shards = column.view(groups.grid.num_nodes, -1)
    if groups.staging is not None:
        groups.staging.gather(_by_local_rank(output, groups.grid), shards)
        return
    if output.device.type == "cpu":
        for block, mine in zip(blocks, shards, strict=True):
            rows = block.view(groups.grid.workers_per_node, -1)
            gather_directly(rows, mine, backend_of(groups.intra))
        return
    _batched(
        groups,
        [
            lambda j=j: dist.all_gather_single(blocks[j], shards[j], group=groups.intra)
            for j in range(groups.grid.num_nodes)
        ],
        output.device,
    )


def scatter_flat(
    total: torch.Tensor, values: torch.Tensor, groups: StageGroups, scratch: Scratch, *, add: bool
) -> None:
    """Sum `values` (p · n) over all workers and keep this worker's part in `total` (n).

    On the host the sum is taken in the order of the ranks; over nodes of several workers in that
    order from the next rank on, around the ring.

    Args:
        total: Where the sum goes.
        values: One part for each rank.
        groups: Process groups.
        scratch: Buffer.
        add: Whether to add to `total` instead of overwriting it.
    """
    if values.device.type == "cpu" and groups.grid.has_stages:
        _scatter_around(total, values, groups.whole, scratch, add=add)
        return
    if groups.staging is not None:
        groups.staging.scatter(total, values.view(groups.grid.num_workers, -1), add=add)
        return
    _scatter(total, values, groups.whole, scratch, add=add)


def scatter_rows(
    column: torch.Tensor, values: torch.Tensor, groups: StageGroups, scratch: Scratch, *, add: bool
) -> None:
    """Sum `values` (p · n) inside the node into `column` (p/k · n): the intra-node stage."""
    assert groups.intra is not None
    num_nodes = groups.grid.num_nodes
    blocks, sums = values.view(num_nodes, -1), column.view(num_nodes, -1)
    if groups.staging is not None:
        groups.staging.scatter(sums, _by_local_rank(values, groups.grid), add=add)
        return
    if values.device.type == "cpu":
        for block, block_sum in zip(blocks, sums, strict=True):
            _scatter(block_sum, block, groups.intra, scratch, add=add)
        return
    target = scratch.take(column, column.numel()).view(num_nodes, -1) if add else sums
    _batched(
        groups,
        [
            lambda j=j: dist.reduce_scatter_single(target[j], blocks[j], group=groups.intra)
            for j in range(num_nodes)
        ],
        values.device,
    )
    if add:
        sums.add_(target)


def scatter_columns(
    total: torch.Tensor, column: torch.Tensor, groups: StageGroups, scratch: Scratch, *, add: bool
) -> None:
    """Sum columns (p/k · n) over the nodes into `total` (n): the inter-node stage."""
    assert groups.inter is not None
    _scatter(total, column, groups.inter, scratch, add=add)


def _by_local_rank(values: torch.Tensor, grid: NodeGrid) -> torch.Tensor:
    """Return what lies by rank, (p · n), by local rank and node: (k, p/k, n)."""
    return values.view(grid.num_nodes, grid.workers_per_node, -1).transpose(0, 1)


def _scatter(
    total: torch.Tensor,
    values: torch.Tensor,
    group: dist.ProcessGroup,
    scratch: Scratch,
    *,
    add: bool,
) -> None:
    if values.device.type == "cpu":
        parts = values.view(group.size(), -1)
        rows = list(scratch.take(values, values.numel()).view_as(parts))
        exchange_directly(rows, parts, backend_of(group))
        rows[group.rank()] = parts[group.rank()]
        _add_up(total, rows, add=add)
        return
    target = scratch.take(total, total.numel()) if add else total
    dist.reduce_scatter_single(target, values, group=group)
    if add:
        total.add_(target)


def _scatter_around(
    total: torch.Tensor,
    values: torch.Tensor,
    group: dist.ProcessGroup,
    scratch: Scratch,
    *,
    add: bool,
) -> None:
    """Reduce-scatter in a ring: each partial sum goes from rank to rank and ends at its owner."""
    size, rank = group.size(), group.rank()
    parts = values.view(size, -1)
    buffers = scratch.take(values, 2 * total.numel()).view(2, -1)
    leaving = parts[rank - 1]
    for turn in range(size - 1):
        arriving = buffers[turn % 2]
        works = [
            dist.isend(leaving, group=group, group_dst=(rank + 1) % size),
            dist.irecv(arriving, group=group, group_src=(rank - 1) % size),
        ]
        for work in works:
            assert work is not None, "this worker is a member"
            work.wait()
        leaving = arriving.add_(parts[(rank - turn - 2) % size])
    if add:
        total.add_(leaving)
    else:
        total.copy_(leaving)


def _add_up(total: torch.Tensor, rows: Sequence[torch.Tensor], *, add: bool) -> None:
    if add:
        for row in rows:
            total.add_(row)
        return
    torch.add(rows[0], rows[1], out=total)
    for row in rows[2:]:
        total.add_(row)


def _batched(groups: StageGroups, launches: list[Any], device: torch.device) -> None:
    """Launch collectives of the intra-node group together, on a GPU."""
    with dist.distributed_c10d._coalescing_manager(group=groups.intra, device=device):
        for launch in launches:
            launch()
