"""Chooses the partition size: MiCS' scale-aware partitioning.

The partition size p is the smallest number of workers whose memory holds the model states, because
every collective of a step grows with p and none with the cluster (Zhang et al., "MiCS: Near-linear
Scaling for Training Gigantic Model on Public Cloud", VLDB 2023). Only the model states
are divided by p; a gathered unit and the activations stand on every worker in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mics_core.errors import BrokenRule
from mics_core.planner.amounts import amount
from mics_core.planner.footprint import USABLE_PERCENT
from mics_core.planner.layout import ClusterShape, LayoutProblem, check_partition_size

__all__ = ["NoPartitionFits", "PartitionChoice", "Rejected", "choose_partition_size"]

_LARGEST_ON_UNKNOWN_CLUSTER = 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """A partition size that was not chosen."""

    partition_size: int
    reason: str
    """Why not, in one sentence."""


@dataclass(frozen=True, slots=True)
class PartitionChoice:
    """The partition size to train with."""

    partition_size: int
    reason: str
    """Why this one, in one sentence."""
    rejected: tuple[Rejected, ...]
    """All smaller sizes, ascending."""


@dataclass(frozen=True, slots=True)
class NoPartitionFits:
    """No partition size fits."""

    needed_bytes: int
    """Memory that each worker needs at the largest partition size that cluster and batch allow."""
    problem: LayoutProblem
    """The value, the rule and the remedy."""
    rejected: tuple[Rejected, ...]
    """All sizes that were tried, ascending."""


@dataclass(frozen=True, slots=True)
class _Need:
    """Memory of one worker as a function of p."""

    model_state_bytes: int
    unit_bytes: Callable[[int], int]
    activation_bytes: int

    def at(self, partition_size: int) -> int:
        shard_bytes = -(-self.model_state_bytes // partition_size)
        return shard_bytes + self.unit_bytes(partition_size) + self.activation_bytes

    def described(self, partition_size: int) -> str:
        units = amount(self.unit_bytes(partition_size))
        return (
            f"{amount(self.at(partition_size))} a worker"
            f" ({amount(self.model_state_bytes)} of model"
            f" states / {partition_size} + {units} of gathered units"
            f" + {amount(self.activation_bytes)} of activations)"
        )


def choose_partition_size(
    *,
    model_state_bytes: int,
    unit_bytes: Callable[[int], int],
    activation_bytes: int,
    worker_memory_bytes: int,
    cluster: ClusterShape,
    batch_problem: Callable[[int], BrokenRule | None],
    percent: int = USABLE_PERCENT,
) -> PartitionChoice | NoPartitionFits:
    """Choose the smallest partition size that fits memory, cluster and batch.

    It fits memory if model_state_bytes / p + unit_bytes(p) + activation_bytes is at most a share of
    the worker's memory; the rest is left to the allocator and the libraries.

    Args:
        model_state_bytes: Parameters, gradients and optimizer states of the whole model.
        unit_bytes: Gathered units and gradients on their way, as a function of p.
        activation_bytes: Activations of one micro-batch on one worker.
        worker_memory_bytes: Memory of one worker.
        cluster: The nodes; if none has workers yet, sizes up to 1024 are tried without its rules.
        batch_problem: Says why p does not suit the global batch; None if it does.
        percent: Share of the memory that may be planned with.

    Returns:
        The choice, or what is missing; both with a reason for each size that was turned down.
    """
    need = _Need(model_state_bytes, unit_bytes, activation_bytes)
    usable_bytes = worker_memory_bytes * percent // 100
    rejected: list[Rejected] = []
    for size in range(1, (cluster.num_workers or _LARGEST_ON_UNKNOWN_CLUSTER) + 1):
        reason = _reason_against(size, need, usable_bytes, cluster, batch_problem)
        if reason is None:
            return PartitionChoice(
                partition_size=size,
                reason=(
                    f"{size} is the smallest partition size that fits: it needs"
                    f" {need.described(size)} of {amount(usable_bytes)} usable."
                ),
                rejected=tuple(rejected),
            )
        rejected.append(Rejected(size, reason))
    return _nothing_fits(need, usable_bytes, percent, cluster, batch_problem, tuple(rejected))


def _reason_against(
    size: int,
    need: _Need,
    usable_bytes: int,
    cluster: ClusterShape,
    batch_problem: Callable[[int], BrokenRule | None],
) -> str | None:
    if need.at(size) > usable_bytes:
        return f"{size} needs {need.described(size)}, but {amount(usable_bytes)} is usable."
    if problem := check_partition_size(size, cluster):
        return f"{problem.value} is refused: {problem.rule}"
    broken = batch_problem(size)
    return None if broken is None else str(broken)


def _nothing_fits(
    need: _Need,
    usable_bytes: int,
    percent: int,
    cluster: ClusterShape,
    batch_problem: Callable[[int], BrokenRule | None],
    rejected: tuple[Rejected, ...],
) -> NoPartitionFits:
    """Say what is missing at the size that comes closest."""
    placeable = [
        entry.partition_size
        for entry in rejected
        if check_partition_size(entry.partition_size, cluster) is None
    ]
    suiting = [size for size in placeable if batch_problem(size) is None]
    best = max(suiting or placeable)
    more_memory = f"each worker at least {amount(-(-need.at(best) * 100 // percent))}"
    holding = [size for size in placeable if need.at(size) <= usable_bytes]
    if holding:
        broken = batch_problem(holding[0])
        assert broken is not None, holding  # or it would have been chosen
        rule = f"memory and cluster allow {holding[0]}, but {broken.rule}"
        remedy = (broken.remedy or "Change the batch to suit it.").removesuffix(".")
        remedy += f", or give {more_memory}." if suiting else "."
    else:
        allowing = "cluster and batch allow" if suiting else "the cluster allows"
        rule = f"the largest size that {allowing}, {best}, needs {need.described(best)}."
        remedy = (
            f"Give {more_memory}, add nodes for a larger partition group, lower"
            " training.micro_batch_size, or set training.activation_checkpointing."
        )
    problem = LayoutProblem(
        value=f"partition_size 'auto' with {amount(usable_bytes)} usable a worker",
        rule=rule,
        remedy=remedy,
    )
    return NoPartitionFits(need.at(best), problem, rejected)
