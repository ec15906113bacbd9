"""Runs a job with a fixed number of workers under plain `torchrun`, without Ray.

    torchrun --nproc-per-node 4 -m mics_core.engine.torchrun job.yaml

Consecutive ranks form partition groups of the job's `partition_size`, which must be a number. A
group stands on one node or takes whole nodes of equal size.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mics_core.comm.nodes import NODES_VARIABLE
from mics_core.comm.partition import form_partition_group
from mics_core.comm.store import host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.ending import end_at_once
from mics_core.engine.allocator import keep_freed_memory
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.summary import StepCommit
from mics_core.errors import LayoutError, MicsError, Problem
from mics_core.spec import JobSpec, check_files, load_job_spec

__all__ = ["main", "run_static"]

logger = logging.getLogger(__name__)


def run_static(spec: JobSpec, device: torch.device) -> list[StepCommit]:
    """Train `spec` over the default world with a membership that never changes.

    All workers of the default world must call it.

    Returns:
        Every committed step.

    Raises:
        LayoutError: The world does not split into whole partition groups with work for each, or a
            group would take parts of nodes.
    """
    world = dist.get_world_size()
    nodes = _nodes(world)
    size = _check_layout(spec, nodes)
    groups = [list(range(first, first + size)) for first in range(0, world, size)]
    partition = form_partition_group(groups, nodes, device)
    # The store of the only generation; kept by rank 0 until everybody is done.
    store = host_store(os.environ["MASTER_ADDR"]) if dist.get_rank() == 0 else None
    box = [store.port if store is not None else 0]
    dist.broadcast_object_list(box, src=0)
    address = StoreAddress(os.environ["MASTER_ADDR"], box[0])
    plan = GenerationPlan(1, tuple(range(len(groups))), address, "All workers start together.")
    membership = StaticMembership(plan, dist.get_rank() // size)
    train(
        lambda initialise: build_trainer(spec, partition, device, initialise=initialise),
        membership,
        begins_run=True,
    )
    dist.barrier()
    return membership.commits


def _nodes(world: int) -> list[str]:
    """Return the node of each rank: as the environment says, or as torchrun numbers them.

    All workers of the default world must call it: each knows only its own, and how many workers a
    node has may differ.
    """
    if named := os.environ.get(NODES_VARIABLE):
        return named.split(",")
    nodes: list[Any] = [None] * world
    # Other launchers set no GROUP_RANK, and number the ranks of equal nodes one after the other.
    alike = dist.get_rank() // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    dist.all_gather_object(nodes, os.environ.get("GROUP_RANK", str(alike)))
    return nodes


def _check_layout(spec: JobSpec, nodes: Sequence[str]) -> int:
    """Return the partition size if groups of it stand on `nodes`, the node of each rank."""
    world = len(nodes)
    size = spec.partition_size
    training = spec.training
    for field in ("micro_batch_size", "activation_checkpointing"):
        if getattr(training, field) == "auto":
            raise LayoutError(
                [
                    Problem(
                        f"training.{field}",
                        "auto",
                        "torchrun starts a fixed layout, which no planner has looked at.",
                        "Give a value; `mics plan` names the best one.",
                    )
                ]
            )
    if size == "auto" or world % size:
        raise LayoutError(
            [
                Problem(
                    "partition_size",
                    str(size),
                    f"torchrun's {world} workers must split into whole partition groups.",
                    f"Give a number that divides {world}.",
                )
            ]
        )
    _check_nodes(size, nodes)
    micro_batches = spec.num_micro_batches(size)
    if world // size > micro_batches:
        raise LayoutError(
            [
                Problem(
                    "training.global_batch_size",
                    str(spec.training.global_batch_size),
                    f"its {micro_batches} micro-batches leave some of the {world // size} partition"
                    " groups without work.",
                    "Start fewer workers or raise the global batch size.",
                )
            ]
        )
    return size


def _check_nodes(size: int, nodes: Sequence[str]) -> None:
    """Refuse groups over parts of nodes, whose collectives could not go by node."""
    workers = Counter(nodes)
    for first in range(0, len(nodes), size):
        inside = Counter(nodes[first : first + size])
        whole = all(workers[node] == size / len(inside) for node in inside)
        if len(inside) == 1 or whole:
            continue
        largest = max(workers.values())
        raise LayoutError(
            [
                Problem(
                    "partition_size",
                    str(size),
                    f"a partition group fits on one node or takes whole nodes of equal size, and"
                    f" ranks {first} to {first + size - 1} take"
                    f" {', '.join(f'{took} of {workers[node]}' for node, took in inside.items())}"
                    " workers of their nodes.",
                    f"Give a divisor or a multiple of {largest}, the workers of a node, and start"
                    " as many workers on every node.",
                )
            ]
        )


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1 or "RANK" not in os.environ:
        logger.error("usage: torchrun --nproc-per-node N -m mics_core.engine.torchrun job.yaml")
        return 2
    try:
        spec = load_job_spec(given[0])
        check_files(spec)
    except MicsError as error:
        logger.error("%s", error)
        return 2
    device = torch.device("cpu")
    if spec.resources.gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    dist.init_process_group(timeout=timedelta(minutes=5))
    try:
        commits = run_static(spec, device)
    except MicsError as error:
        logger.error("%s", error)
        return 1
    finally:
        dist.destroy_process_group()
    if int(os.environ["RANK"]) == 0:
        for commit in commits:
            logger.info("step %d  loss %.5f", commit.step, commit.loss)
    return 0


if __name__ == "__main__":
    # A thread may still wait for storage, in a collective with another worker's.
    end_at_once(main())
