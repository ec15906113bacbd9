"""Functions that a worker pool runs: the collectives of a partition group over several nodes."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mics_core.comm.partition import PartitionGroup, form_partition_group
from mics_core.comm.stages import (
    Scratch,
    gather_column,
    gather_flat,
    gather_rows,
    scatter_columns,
    scatter_flat,
    scatter_rows,
)

_BYTES_RECEIVED = 128  # of struct tcp_info in linux/tcp.h

_groups: dict[tuple[int, int], PartitionGroup] = {}

Layout = tuple[int, int, bool]
"""p, k, and whether the workers of a node share memory where they can."""


@dataclass(frozen=True)
class Gathered:
    flat: str
    staged: str
    column_elements: int


def group_of(layout: Layout) -> PartitionGroup | None:
    """Return a partition group of the first ranks of the world; none on the others."""
    size, workers_per_node, shares = layout
    key = (size, workers_per_node)
    if key not in _groups:
        world = dist.get_world_size()
        ranks = [range(size), *([range(size, world)] if size < world else [])]
        nodes = [f"node-{rank // workers_per_node}" for rank in range(world)]
        _groups[key] = form_partition_group(ranks, nodes, torch.device("cpu"))
    group = _groups[key]
    if dist.get_rank() >= size:
        return None
    assert (group.gathers.staging is not None) == (workers_per_node > 1)
    if shares:
        return group
    gathers, scatters = replace(group.gathers, staging=None), replace(group.scatters, staging=None)
    return replace(group, gathers=gathers, scatters=scatters)


def values_of(rank: int, num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(num_elements, generator=torch.Generator().manual_seed(rank)).to(dtype)


def gather_both_ways(layout: Layout, num_elements: int, dtype: torch.dtype) -> Gathered | None:
    group = group_of(layout)
    if group is None:
        return None
    size = group.size
    outputs = [torch.full((size * num_elements,), -1.0).to(dtype) for _ in range(2)]
    shards = [output.view(size, -1)[group.rank] for output in outputs]  # as FSDP2 lays them
    for shard in shards:
        shard.copy_(values_of(group.rank, num_elements, dtype))
    gather_flat(outputs[0], shards[0], group.gathers)
    column = gather_column(shards[1], group.gathers)
    gather_rows(outputs[1], column, group.gathers)
    expected = torch.cat([values_of(rank, num_elements, dtype) for rank in range(size)])
    assert torch.equal(outputs[1], expected)
    return Gathered(*(_digest(output) for output in outputs), column.numel())


def scatter_every_way(
    layout: Layout, num_elements: int, dtype: torch.dtype
) -> dict[str, tuple[float, str]] | None:
    """Return each way's largest relative error against the sum in double precision, and digest."""
    group = group_of(layout)
    if group is None:
        return None
    size = group.size
    rounds = [
        [values_of(100 * turn + rank, size * num_elements, dtype) for rank in range(size)]
        for turn in range(2)
    ]
    gold = torch.stack([torch.stack(turn).double().sum(0) for turn in rounds]).view(2, size, -1)
    first, both = gold[0, group.rank], gold[:, group.rank].sum(0)
    scratch = Scratch()
    found: dict[str, tuple[float, str]] = {}

    def check(name: str, total: torch.Tensor, expected: torch.Tensor) -> None:
        found[name] = (_error(total, expected), _digest(total))

    total = torch.full((num_elements,), 7.0, dtype=dtype)
    mine = [turn[group.rank].clone() for turn in rounds]
    scatter_flat(total, mine[0], group.scatters, scratch, add=False)
    check("flat", total, first)
    scatter_flat(total, mine[1], group.scatters, scratch, add=True)
    check("flat, added", total, both)
    assert all(torch.equal(kept, turn[group.rank]) for kept, turn in zip(mine, rounds, strict=True))
    if not group.grid.has_stages:
        return found
    column = torch.full((group.grid.num_nodes * num_elements,), 7.0, dtype=dtype)
    scatter_rows(column, mine[0], group.scatters, scratch, add=False)
    scatter_columns(total, column, group.scatters, scratch, add=False)
    check("stages", total, first)
    scatter_rows(column, mine[1], group.scatters, scratch, add=False)
    scatter_columns(total, column, group.scatters, scratch, add=True)
    check("stages, added", total, both)
    scatter_rows(column, mine[0], group.scatters, scratch, add=False)
    scatter_rows(column, mine[1], group.scatters, scratch, add=True)
    scatter_columns(total, column, group.scatters, scratch, add=False)
    check("added inside the node", total, both)
    return found


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are made, and those that are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.made_bytes = self.copied_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_place(value) for value in tree_leaves((args, kwargs)) if _is_tensor(value)}
        fresh = {_place(value) for value in tree_leaves(result) if _is_tensor(value)} - given
        self.made_bytes += sum(num_bytes for _, num_bytes in fresh)
        if func is torch.ops.aten.copy_.default:
            self.copied_bytes += args[0].nbytes
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _place(value: torch.Tensor) -> tuple[int, int]:
    storage = value.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def count_memory(layout: Layout, num_elements: int) -> dict[str, tuple[int, int]] | None:
    """Return what each way makes and copies of a unit of p · `num_elements`, in bytes.

    Buffers that stay from one unit to the next are there already.
    """
    group = group_of(layout)
    if group is None:
        return None
    output = torch.zeros(group.size * num_elements)
    total, column = torch.zeros(num_elements), torch.zeros(group.grid.num_nodes * num_elements)
    shard, scratch, found = output.view(group.size, -1)[group.rank], Scratch(), {}
    ways: dict[str, Callable[[], object]] = {
        "flat gather": lambda: gather_flat(output, shard, group.gathers),
        "gather": lambda: gather_rows(output, gather_column(shard, group.gathers), group.gathers),
        "flat scatter": lambda: scatter_flat(total, output, group.scatters, scratch, add=True),
        "scatter": lambda: (
            scatter_rows(column, output, group.scatters, scratch, add=False),
            scatter_columns(total, column, group.scatters, scratch, add=True),
        ),
    }
    for name, way in ways.items():
        way()
        with Memory() as memory:
            way()
        found[name] = (memory.made_bytes, memory.copied_bytes)
    return found


@dataclass(frozen=True)
class Connection:
    """One end of a connection, and what it received in the collective."""

    here: tuple[str, int]
    there: tuple[str, int]
    received_bytes: int


def receive_by_route(layout: Layout, num_elements: int) -> dict[str, list[Connection]] | None:
    """Run each gather and scatter of a unit of p · `num_elements` and count what came in."""
    group = group_of(layout)
    if group is None:
        return None
    size = group.size
    shard, unit = torch.ones(num_elements), torch.ones(size * num_elements)
    column = torch.ones(group.grid.num_nodes * num_elements)
    scratch = Scratch()
    gathers, scatters = group.gathers, group.scatters
    staged: dict[str, Callable[[], object]] = {
        "staged gather, between nodes": lambda: gather_column(shard, gathers),
        "staged gather, inside": lambda: gather_rows(unit, column, gathers),
        "staged scatter, inside": lambda: scatter_rows(column, unit, scatters, scratch, add=False),
        "staged scatter, between nodes": lambda: scatter_columns(
            shard, column, scatters, scratch, add=False
        ),
    }
    routes: dict[str, Callable[[], object]] = {
        "flat gather": lambda: gather_flat(unit, shard, gathers),
        **(staged if group.grid.has_stages else {}),
        "flat scatter": lambda: scatter_flat(shard, unit, scatters, scratch, add=False),
    }
    received = {}
    for name, run in routes.items():
        dist.barrier(group.control)
        before = _received_bytes()
        dist.barrier(group.control)  # nobody sends before all have looked
        run()
        received[name] = [
            Connection(here, there, total - before.get((here, there), 0))
            for (here, there), total in _received_bytes().items()
        ]
    return received


def _received_bytes() -> dict[tuple[tuple[str, int], tuple[str, int]], int]:
    """Return what the kernel has received on each connection of this process, by its two ends."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            descriptor = os.dup(int(entry.name))
        except OSError:
            continue  # the folder's own, closed by now
        with closing(socket.socket(fileno=descriptor)) as connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            try:
                here, there = connection.getsockname()[:2], connection.getpeername()[:2]
            except OSError:
                continue  # it listens
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        found[here, there] = struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]
    return found


def _error(total: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((total.double() - expected).abs().max() / expected.abs().max())


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()
