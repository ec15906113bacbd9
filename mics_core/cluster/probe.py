"""Measures a live Ray cluster: one actor for each worker slot, all in one process group.

The actors stand where a job's workers would, on equal nodes, and measure together what
`mics_core.comm.probing` describes. Whatever happens, they and their room are given back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mics_core.cluster.connection import first_line
from mics_core.cluster.placement import cluster_shape, worker_resources
from mics_core.comm.measured import (
    ClusterFindings,
    LinkFit,
    ProbeReport,
    ProbeSettings,
    cluster_findings,
    unmeasurable_link,
)
from mics_core.errors import ClusterError, LayoutError, MicsError, Problem
from mics_core.planner.layout import NodeShape
from mics_core.spec.cluster import LinkSpec
from mics_core.spec.job import ResourcesSpec

__all__ = ["LinkFit", "ProbeSettings", "ProbedCluster", "equal_nodes", "probe_cluster"]

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class ProbedCluster:
    """What a probe found.

    Args:
        findings: The cluster file, and what to know beside it.
        report: What was measured.
    """

    findings: ClusterFindings
    report: ProbeReport


def probe_cluster(
    resources: ResourcesSpec,
    workers_per_node: int | None = None,
    *,
    name: str | None = None,
    inter_node: LinkSpec | None = None,
    settings: ProbeSettings | None = None,
    room_timeout_s: float = 60.0,
    timeout_s: float = 600.0,
    tell: Callable[[str], None] = lambda _: None,
) -> ProbedCluster:
    """Measure the connected cluster with one worker for each slot of its equal nodes.

    Args:
        resources: What each worker gets; `memory_gib` is its memory where it is stated.
        workers_per_node: k; nodes with fewer slots are left out. The default is what the nodes
            hold, which must then be the same for all of them.
        name: The cluster's name in the file; the default tells its size.
        inter_node: The link between nodes where it is stated rather than measured.
        settings: How thoroughly to measure.
        room_timeout_s: Longest wait for free slots.
        timeout_s: Longest time of everything after it.
        tell: Called with one sentence when something begins.

    Raises:
        LayoutError: The nodes are unequal or too few, or a worker's memory is not known.
        ClusterError: There is no room, or a worker failed or did not answer in time.
    """
    nodes = equal_nodes(cluster_shape(resources).nodes, resources, workers_per_node)
    per_node = workers_per_node or nodes[0].num_workers
    if len(nodes) < 2 and inter_node is None:
        raise unmeasurable_link(len(nodes))
    notes = _notes(resources, len(nodes), per_node)
    memory_gib = resources.memory_gib or _memory_share_gib(resources, nodes, per_node)
    tell(f"Waiting for {len(nodes)} nodes with {per_node} free worker slots each.")
    with _workers(len(nodes), per_node, resources, room_timeout_s) as workers:
        report = _measure(workers, settings or ProbeSettings(), timeout_s, tell)
    kind = "GPU" if resources.gpus else "CPU"
    found = cluster_findings(
        report,
        name=name or f"{len(nodes)} × {per_node} {kind} workers",
        memory_gib=memory_gib,
        inter_node=inter_node,
    )
    return ProbedCluster(ClusterFindings(found.spec, (*found.notes, *notes)), report)


class ProbeWorker:
    """Actor: one rank of the measurement."""

    def __init__(self) -> None:
        self._store: Any = None

    def node_id(self) -> str:
        """Return Ray's id of the node this actor runs on."""
        return str(ray.get_runtime_context().get_node_id())

    def open_store(self, world_size: int, timeout_s: float) -> tuple[str, int]:
        """Start the store at which the ranks meet; return its host and port."""
        from torch._C._distributed_c10d import TCPStore

        host = str(ray.util.get_node_ip_address())
        self._store = TCPStore(
            host,
            0,
            world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
        return host, int(self._store.port)

    def measure(
        self,
        rank: int,
        nodes_of_ranks: Sequence[str],
        store: tuple[str, int],
        settings: ProbeSettings,
        timeout_s: float,
    ) -> ProbeReport:
        """Join the others and measure; all ranks must be called."""
        import torch
        import torch.distributed as dist
        from torch._C._distributed_c10d import TCPStore

        from mics_core.comm.probing import measure_cluster
        from mics_core.engine.allocator import keep_freed_memory

        limit = timedelta(seconds=timeout_s)
        size = len(nodes_of_ranks)
        meeting = self._store or TCPStore(*store, size, is_master=False, timeout=limit)
        # Ray lets an actor see its own GPU alone, as number 0.
        uses_gpu = bool(ray.get_gpu_ids())
        device = torch.device("cuda", 0) if uses_gpu else torch.device("cpu")
        if uses_gpu:
            torch.cuda.set_device(device)
        else:
            keep_freed_memory()  # as those that train
        backend = "cpu:gloo,cuda:nccl" if uses_gpu else "gloo"
        dist.init_process_group(backend, store=meeting, rank=rank, world_size=size, timeout=limit)
        return measure_cluster(nodes_of_ranks, device, settings)


def equal_nodes(
    nodes: tuple[NodeShape, ...], resources: ResourcesSpec, workers_per_node: int | None
) -> list[NodeShape]:
    """Return the nodes that a probe measures.

    Args:
        nodes: The nodes that can hold a worker of `resources`.
        resources: What each worker gets.
        workers_per_node: Take the nodes that hold as many; without it all, which must be equal.

    Raises:
        LayoutError: They are unequal, or there are none.
    """
    slots = ", ".join(f"{amount:g} {key}" for key, amount in worker_resources(resources).items())
    if workers_per_node is not None:
        usable = [node for node in nodes if node.num_workers >= workers_per_node]
        value, room = f"{workers_per_node} (workers of {slots})", "that many workers"
    else:
        usable, value, room = list(nodes), f"a worker of {slots}", "a worker"
    if not usable:
        most = max((node.num_workers for node in nodes), default=0)
        raise _layout_error(
            value,
            f"no living node can hold {room}; the largest holds {most}.",
            "Lower --workers-per-node or --cpus-per-worker, or add a node.",
        )
    counts = Counter(node.num_workers for node in usable)
    if workers_per_node is None and len(counts) > 1:
        described = " and ".join(
            f"{count} × {workers}" for workers, count in sorted(counts.items(), reverse=True)
        )
        choices = [
            f"{workers} for {sum(node.num_workers >= workers for node in usable)} of the nodes"
            for workers in sorted(counts)
        ]
        raise _layout_error(
            f"nodes of {described} workers",
            "a cluster file describes equal nodes.",
            f"Choose with --workers-per-node: {' or '.join(choices)}.",
        )
    return usable


def _notes(resources: ResourcesSpec, num_nodes: int, per_node: int) -> tuple[str, ...]:
    notes = []
    living = len(cluster_shape(resources).nodes)
    if left_out := living - num_nodes:
        notes.append(
            f"{left_out} of {living} nodes with fewer than {per_node} worker slots were left out."
        )
    slot = "GPU" if resources.gpus else "CPU"
    total, free = (
        found.get(slot, 0.0) for found in (ray.cluster_resources(), ray.available_resources())
    )
    if free < total:
        notes.append(
            f"{total - free:g} of {total:g} {slot} slots were busy with other work, which slows"
            " what was measured; measure again on an idle cluster."
        )
    return tuple(notes)


def _memory_share_gib(
    resources: ResourcesSpec, nodes: Sequence[NodeShape], per_node: int
) -> float | None:
    """An equal share of the smallest node's memory; none for GPUs, which tell theirs."""
    if resources.gpus:
        return None
    wanted = {node.node_id for node in nodes}
    memory = [
        node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["NodeID"] in wanted
    ]
    return min(memory, default=0.0) / per_node / _GIB or None


def _reserve(
    num_nodes: int, per_node: int, resources: ResourcesSpec, timeout_s: float
) -> PlacementGroup:
    bundle = {key: amount * per_node for key, amount in worker_resources(resources).items()}
    # Whole nodes: a bundle for each, so that every node with the slots is taken exactly once.
    room = placement_group([bundle] * num_nodes, strategy="STRICT_SPREAD", name="mics-probe")
    try:
        is_placed = room.wait(timeout_s)
    except BaseException:
        remove_placement_group(room)
        raise
    if is_placed:
        return room
    remove_placement_group(room)
    raise ClusterError(
        f"{num_nodes} nodes had no {per_node} free worker slots each within {timeout_s:g} s.",
        remedy="Wait until other jobs have ended, or measure with fewer by --workers-per-node.",
    )


@contextmanager
def _workers(
    num_nodes: int, per_node: int, resources: ResourcesSpec, room_timeout_s: float
) -> Iterator[list[Any]]:
    """Yield the actors, node by node; they and their room are given back at the end."""
    room = _reserve(num_nodes, per_node, resources, room_timeout_s)
    needed = worker_resources(resources)
    workers: list[Any] = []
    try:
        for bundle in range(num_nodes):
            for _ in range(per_node):
                worker = ray.remote(ProbeWorker).options(
                    num_cpus=needed["CPU"],
                    num_gpus=needed.get("GPU", 0),
                    resources=resources.custom,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        room, placement_group_bundle_index=bundle
                    ),
                )
                workers.append(worker.remote())
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)
        remove_placement_group(room)


def _measure(
    workers: list[Any],
    settings: ProbeSettings,
    timeout_s: float,
    tell: Callable[[str], None],
) -> ProbeReport:
    """Have the workers form one world and measure it."""
    deadline = time.monotonic() + timeout_s
    tell(f"Starting {len(workers)} workers.")
    nodes = _answers([worker.node_id.remote() for worker in workers], deadline)
    (store,) = _answers([workers[0].open_store.remote(len(workers), timeout_s)], deadline)
    tell(f"Measuring {len(workers)} workers on {len(set(nodes))} nodes.")
    reports: list[ProbeReport] = _answers(
        [
            worker.measure.remote(rank, nodes, store, settings, timeout_s)
            for rank, worker in enumerate(workers)
        ],
        deadline,
    )
    return reports[0]


def _answers(calls: list[Any], deadline: float) -> list[Any]:
    """Return what the calls return; the first error of any of them ends the wait.

    Raises:
        ClusterError: A worker failed, or has not answered by the deadline.
    """
    waiting = list(calls)
    try:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise GetTimeoutError
            ray.get(ready)
        return list(ray.get(calls))
    except GetTimeoutError:
        raise ClusterError(
            f"{len(waiting)} of {len(calls)} workers of the probe did not answer in time.",
            remedy="Check with `ray status` that all nodes are well and reach each other; where a"
            " node has several network interfaces, name the right one on all of them with"
            " GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.",
        ) from None
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MicsError):
            raise cause from None
        raise ClusterError(
            f"A worker of the probe failed: {first_line(cause or error)}",
            remedy="Check that every node runs the same version of this package and that the"
            " nodes reach each other; where a node has several network interfaces, name the"
            " right one on all of them with GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME.",
        ) from error


def _layout_error(value: str, rule: str, remedy: str) -> LayoutError:
    return LayoutError([Problem("workers_per_node", value, rule, remedy)])
