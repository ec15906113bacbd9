"""Measures the links between the workers of a world, and what each of them computes.

Every worker calls `measure_cluster` on the default process group that it is in already: under Ray
(`mics_core.cluster.probe`), under `torchrun`, or in network namespaces. The links are measured in
the way that training loads them: within nodes by one ring on each node, all nodes at once, or on
the host through memory that the node's workers share; between nodes by one ring for each local
rank, all k at once, so that the rings share each node's link as the inter-node stage of MiCS does
(Zhang et al., VLDB 2023, section 3.2).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from mics_core.comm.busy import calls_per_s
from mics_core.comm.measured import (
    LinkFit,
    ProbeReport,
    ProbeSettings,
    SizeTimings,
    fit_link,
)
from mics_core.comm.probe_block import round_of_block
from mics_core.comm.staging import Staging, share_staging
from mics_core.errors import LayoutError, Problem

__all__ = ["measure_cluster", "measure_link"]

_MAX_CALLS = 64
"""All-gathers in one timed window; more bring nothing."""
_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_MOVED_BYTES = 32 << 20
"""More than the caches of one worker hold."""


def measure_cluster(
    nodes_of_ranks: Sequence[str],
    device: torch.device,
    settings: ProbeSettings | None = None,
) -> ProbeReport:
    """Measure the links and workers of the default process group.

    All ranks of the default group must call it, with the same arguments. It makes process groups of
    its own and destroys them again.

    Args:
        nodes_of_ranks: Name of each rank's node, by rank, in any order.
        device: This rank's; decides the backend (NCCL on CUDA, else gloo) and the products' types
            (bf16, fp32 and fp64 on CUDA, else fp32).
        settings: How thoroughly to measure.

    Returns:
        The same report on every rank.

    Raises:
        LayoutError: The nodes have different numbers of workers.
    """
    assert len(nodes_of_ranks) == dist.get_world_size(), "one node for each rank"
    settings = settings or ProbeSettings()
    start = time.perf_counter()
    nodes = _ranks_by_node(nodes_of_ranks)
    ranks = list(nodes.values())
    workers_per_node = len(ranks[0])
    control = dist.new_group(backend="gloo")
    try:
        intra = inter = None
        if workers_per_node > 1:
            intra = measure_link(ranks, device, control, 1, settings, shares_memory=True)
        if len(nodes) > 1:
            rings = [list(ring) for ring in zip(*ranks, strict=True)]
            inter = measure_link(rings, device, control, workers_per_node, settings)
        main, *others = _dtypes_of_products(device)
        tflops = _measure_products(device, main, control, settings.compute_s)
        in_others = {
            _PRECISIONS[dtype]: tuple(_measure_products(device, dtype, control, settings.compute_s))
            for dtype in others
        }
        of_block = _measure_block(device, control, settings.compute_s)
        moved = _measure_memory(device, control, settings.compute_s / 2)
        memory = _gather([_memory_bytes(device)], control)
    finally:
        dist.destroy_process_group(control)
    return ProbeReport(
        nodes=tuple(nodes),
        workers_per_node=workers_per_node,
        intra_node=intra,
        inter_node=inter,
        tflops=tuple(tflops),
        other_tflops=in_others,
        block_tflops=tuple(of_block),
        memory_bytes_per_s=tuple(moved),
        memory_bytes=int(min(row[0] for row in memory)) or None,
        seconds=time.perf_counter() - start,
    )


def measure_link(
    rings: Sequence[Sequence[int]],
    device: torch.device,
    control: dist.ProcessGroup,
    rings_per_node: int,
    settings: ProbeSettings,
    *,
    shares_memory: bool = False,
) -> LinkFit:
    """Time all-gathers in all `rings` at once and fit the link to them.

    All ranks of the default group must call it; each is in exactly one ring of at least two.

    Args:
        rings: Ranks of each ring, all of the same length.
        device: This rank's.
        control: A gloo group over all ranks.
        rings_per_node: Rings that share the link.
        settings: How thoroughly to measure.
        shares_memory: Whether the ranks of a ring are on one node, and on the host share memory
            where they can, as they do in training.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    groups = [dist.new_group(list(ring), backend=backend) for ring in rings]
    rank = dist.get_rank()
    mine = next(group for ring, group in zip(rings, groups, strict=True) if rank in ring)
    staging = None
    if shares_memory and backend == "gloo":
        staging = share_staging(mine, default_pg_timeout.total_seconds())
    gather = partial(_gather_bytes, mine, staging)
    try:
        timings = _time_sizes(rings, gather, device, control, settings)
    finally:
        if staging is not None:
            staging.close()
        dist.destroy_process_group(mine)
    return fit_link(len(rings[0]), rings_per_node, timings)


def _ranks_by_node(nodes_of_ranks: Sequence[str]) -> dict[str, list[int]]:
    nodes: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes_of_ranks):
        nodes.setdefault(node, []).append(rank)
    counts = {node: len(ranks) for node, ranks in nodes.items()}
    if len(set(counts.values())) > 1:
        raise LayoutError(
            [
                Problem(
                    "workers_per_node",
                    ", ".join(f"{count} on {node}" for node, count in counts.items()),
                    "a probe needs the same number of workers on every node.",
                    f"Use {min(counts.values())} workers on each.",
                )
            ]
        )
    return nodes


def _gather_bytes(
    ring: dist.ProcessGroup, staging: Staging | None, whole: torch.Tensor, shard: torch.Tensor
) -> None:
    if staging is not None:
        staging.gather(whole.view(ring.size(), -1), shard)
    else:
        dist.all_gather_single(whole, shard, group=ring)


def _time_sizes(
    rings: Sequence[Sequence[int]],
    gather: Callable[[torch.Tensor, torch.Tensor], None],
    device: torch.device,
    control: dist.ProcessGroup,
    settings: ProbeSettings,
) -> list[SizeTimings]:
    timings: list[SizeTimings] = []
    for num_bytes in settings.message_bytes:
        if len(timings) > 1:
            last = timings[-1]
            expected_s = last.median_s * num_bytes / last.bytes_per_rank
            # Every rank holds the same timings, and so decides alike.
            if expected_s * settings.repetitions > settings.size_budget_s:
                break
        shard = torch.ones(num_bytes, dtype=torch.uint8, device=device)
        whole = torch.empty(num_bytes * len(rings[0]), dtype=torch.uint8, device=device)
        # The first call of all makes the connections, so the second is the one to go by.
        for _ in range(2):
            estimate_s = _window_s(shard, whole, 1, gather, device, control)
        slowest_s = max(row[0] for row in _gather([estimate_s], control))
        calls = min(_MAX_CALLS, max(1, math.ceil(settings.window_s / slowest_s)))
        windows = [
            _window_s(shard, whole, calls, gather, device, control) / calls
            for _ in range(settings.repetitions)
        ]
        rows = _gather(windows, control)
        timings.append(SizeTimings(num_bytes, _times_of_rings(rings, rows)))
    return timings


def _times_of_rings(
    rings: Sequence[Sequence[int]], rows: Sequence[Sequence[float]]
) -> tuple[float, ...]:
    """Return each repetition's time: a ring's is its middle rank's, and the slowest ring counts.

    A rank that leaves the barrier first also times its wait for the others, the last one does not.
    """
    return tuple(
        max(statistics.median(times[rank] for rank in ring) for ring in rings)
        for times in zip(*rows, strict=True)
    )


def _window_s(
    shard: torch.Tensor,
    whole: torch.Tensor,
    calls: int,
    gather: Callable[[torch.Tensor, torch.Tensor], None],
    device: torch.device,
    control: dist.ProcessGroup,
) -> float:
    """Seconds of `calls` all-gathers, begun by all ranks together."""
    _synchronize(device)
    dist.barrier(group=control)
    start = time.perf_counter()
    for _ in range(calls):
        gather(whole, shard)
    _synchronize(device)
    return time.perf_counter() - start


def _measure_products(
    device: torch.device, dtype: torch.dtype, control: dist.ProcessGroup, compute_s: float
) -> list[float]:
    """Return each worker's best rate of square matrix products, in TFLOP/s, by rank."""
    is_cuda = device.type == "cuda"
    widths = (4096, 8192) if is_cuda else (512, 1024)
    # A GPU is kept busy between looks at the clock, but not for seconds where it has few units for
    # a type.
    in_a_row = 10 if is_cuda and dtype is not torch.float64 else 1
    best = 0.0
    for width in widths:
        left = torch.randn(width, width, dtype=dtype, device=device)
        right, product = torch.randn_like(left), torch.empty_like(left)

        def multiply(
            left: torch.Tensor = left, right: torch.Tensor = right, product: torch.Tensor = product
        ) -> None:
            for _ in range(in_a_row):
                torch.mm(left, right, out=product)
            _synchronize(device)

        rate = calls_per_s(multiply, compute_s / len(widths), control)
        best = max(best, 2.0 * width**3 * in_a_row * rate / 1e12)
    return [row[0] for row in _gather([best], control)]


def _measure_block(
    device: torch.device, control: dist.ProcessGroup, compute_s: float
) -> list[float]:
    """Return each worker's rate in a model's block, all busy, in TFLOP/s, by rank."""
    compute, flops = round_of_block(device, _dtypes_of_products(device)[0])

    def one_round() -> None:
        compute()
        _synchronize(device)

    rate = calls_per_s(one_round, compute_s, control)
    return [row[0] for row in _gather([flops * rate / 1e12], control)]


def _dtypes_of_products(device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the types to measure, first the one that a block is measured in too.

    The rates of a GPU are far apart, and a job goes by that of its precision.
    """
    if device.type == "cuda":
        return torch.bfloat16, torch.float32, torch.float64
    return (torch.float32,)


def _measure_memory(
    device: torch.device, control: dist.ProcessGroup, seconds: float
) -> list[float]:
    """Return the bytes that each worker reads and writes in a second, all busy, by rank."""
    # A product, since plain copies on CPUs pass the caches by, which kernels seldom do.
    source = torch.ones(_MOVED_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def move() -> None:
        torch.mul(source, 2.0, out=target)
        _synchronize(device)

    rate = calls_per_s(move, seconds, control)
    return [row[0] for row in _gather([2.0 * _MOVED_BYTES * rate], control)]


def _memory_bytes(device: torch.device) -> float:
    if device.type != "cuda":
        return 0.0
    return float(torch.cuda.get_device_properties(device).total_memory)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gather(values: Sequence[float], control: dist.ProcessGroup) -> list[list[float]]:
    mine = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(mine) for _ in range(control.size())]
    dist.all_gather(rows, mine, group=control)
    return [row.tolist() for row in rows]
