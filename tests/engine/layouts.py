"""Functions that the worker pool runs: a job over a number of partition groups."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from benchmarks.harness.digest import digest_of
from mics_core.comm.partition import PartitionGroup, form_partition_group
from mics_core.comm.store import host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.trainer import Trainer
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec

_formed: dict[str, PartitionGroup] = {}


def train_over_groups(
    spec: JobSpec,
    num_groups: int,
    partition_size: int,
    workers_per_node: int = 8,
    strategy: Strategy | None = None,
) -> dict[str, Any] | None:
    """Train `spec` on the first ranks of the world; the others only help to form groups.

    Consecutive ranks share a node of `workers_per_node`.

    Returns:
        On each rank that trains: the losses, the digest of its own state, and on rank 0 the whole
        parameters.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    busy = num_groups * partition_size
    ranks = [list(range(first, first + partition_size)) for first in range(0, busy, partition_size)]
    idle = list(range(busy, world))
    device = torch.device("cpu")
    nodes = [f"node-{place // workers_per_node}" for place in range(busy)]
    nodes += [f"idle-{place}" for place in idle]
    partition = partition_group([*ranks, idle] if idle else ranks, nodes, device)
    store = host_store("127.0.0.1") if rank == 0 else None
    port: list[Any] = [store.port if store is not None else None]
    dist.broadcast_object_list(port, src=0)
    if rank >= busy:
        dist.barrier()
        return None
    plan = GenerationPlan(1, tuple(range(num_groups)), StoreAddress("127.0.0.1", port[0]), "test")
    membership = StaticMembership(plan, rank // partition_size)
    trainers: list[Trainer] = []

    def build(initialise: bool) -> Trainer:
        trainers.append(
            build_trainer(spec, partition, device, strategy=strategy, initialise=initialise)
        )
        return trainers[0]

    try:
        train(build, membership, begins_run=True)
    except BaseException:
        dist.barrier()  # the others wait there
        raise
    model = trainers[0].model
    # Activation checkpointing wraps blocks, which shows in the names.
    mine = {
        name.replace("_checkpoint_wrapped_module.", ""): value.detach()
        for name, value in model.named_parameters()
    }
    whole = _whole(mine, partition) if rank < partition_size else None
    dist.barrier()
    return {
        "losses": [commit.loss for commit in membership.commits],
        "norms": [commit.gradient_norm for commit in membership.commits],
        "shares": [commit.shares for commit in membership.commits],
        "waited_s": [commit.waited_s for commit in membership.commits],
        "digest": digest_of(trainers[0]),
        "checkpoints": membership.checkpoints,
        "parameters": whole,
    }


def partition_group(
    ranks: list[list[int]], nodes: list[str], device: torch.device
) -> PartitionGroup:
    """Form partition groups once for each layout; the pool serves many tests.

    They are kept, for torch remembers the process groups of a mesh that it has seen.
    """
    key = repr((ranks, nodes))
    if key not in _formed:
        _formed[key] = form_partition_group(ranks, nodes, device)
    return _formed[key]


def _whole(
    parameters: dict[str, torch.Tensor], partition: PartitionGroup
) -> dict[str, torch.Tensor] | None:
    """Return the whole parameters on rank 0; all workers of the partition group must call it.

    `full_tensor` would do, were there not many meshes over the same ranks in the pool's life: torch
    takes them for one.
    """
    local = {
        name: value.to_local() if isinstance(value, DTensor) else value
        for name, value in parameters.items()
    }
    all_shards: list[Any] = [None] * partition.size
    keeps_them = partition.rank == 0
    dist.gather_object(
        local, all_shards if keeps_them else None, group=partition.control, group_dst=0
    )
    if not keeps_them:
        return None
    return {
        name: torch.cat([shards[name] for shards in all_shards])
        if isinstance(value, DTensor)
        else value
        for name, value in parameters.items()
    }
