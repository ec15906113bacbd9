"""Functions that the worker pool runs: a run in which groups hear of losses in mid-step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.harness.digest import digest_of
from mics_core.comm.partition import PartitionGroup
from mics_core.comm.store import StoreHost, host_store
from mics_core.data.batches import Batch
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.trainer import Trainer
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.layouts import partition_group


class LosingMembership(StaticMembership):
    """The same groups are announced again and again, as after losses.

    Args:
        plans: The generations.
        group_id: This worker's partition group.
        hears_after: For each generation the questions after which this worker has heard of the
            next one; none if it never hears.
    """

    def __init__(
        self,
        plans: Sequence[GenerationPlan],
        group_id: int,
        hears_after: Sequence[int | None],
    ):
        super().__init__(plans[0], group_id)
        self._plans = plans
        self._hears_after = (*hears_after, None)
        self._generation = 1
        self._questions = 0
        self.breaks: list[tuple[int, str]] = []

    @property
    def outlives_losses(self) -> bool:
        return True

    def after_loss(self) -> int:
        self._questions += 1
        limit = self._hears_after[self._generation - 1]
        return self._generation + (limit is not None and self._questions > limit)

    def next_plan(self, after: int) -> GenerationPlan:
        return self._plans[after]

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        assert has_state
        self._generation, self._questions = generation + 1, 0
        self.breaks.append((step, error))


@dataclass(frozen=True)
class Survived:
    """What one worker saw."""

    losses: list[float]
    in_hand: list[float]
    breaks: list[tuple[int, str]]
    micro_batches: int
    digest: str


@dataclass(frozen=True)
class Place:
    """A worker's place among generations of the same groups.

    Args:
        partition: Its partition group.
        plans: The generations.
        group_id: Its partition group's id.
        stores: Where they meet, on rank 0; a store listens for as long as somebody holds it.
    """

    partition: PartitionGroup
    plans: list[GenerationPlan]
    group_id: int
    stores: list[StoreHost]


def take_place(num_groups: int, partition_size: int, num_generations: int = 2) -> Place | None:
    """Form partition groups and generations; none for a worker that is not needed."""
    rank, world = dist.get_rank(), dist.get_world_size()
    busy = num_groups * partition_size
    ranks = [list(range(first, first + partition_size)) for first in range(0, busy, partition_size)]
    if busy < world:
        ranks.append(list(range(busy, world)))
    nodes = [f"node-{place // 2}" for place in range(world)]
    partition = partition_group(ranks, nodes, torch.device("cpu"))
    stores = [host_store("127.0.0.1") for _ in range(num_generations)]
    ports: list[Any] = [store.port for store in stores]
    dist.broadcast_object_list(ports, src=0)
    if rank >= busy:
        return None
    members = tuple(range(num_groups))
    plans = [
        GenerationPlan(number, members, StoreAddress("127.0.0.1", port), "test")
        for number, port in enumerate(ports, start=1)
    ]
    return Place(partition, plans, rank // partition_size, stores)


def train_through_losses(
    spec: JobSpec,
    num_groups: int,
    partition_size: int,
    hears: Sequence[tuple[int, int]],
    strategy: Strategy | None,
) -> Survived | None:
    """Train; in each generation the last worker of one group hears of a loss.

    Args:
        spec: The job.
        num_groups: Partition groups.
        partition_size: Workers of each.
        hears: For each generation the group, and the questions after which it hears.
        strategy: How it moves its model states.
    """
    place = take_place(num_groups, partition_size, len(hears) + 1)
    if place is None:
        dist.barrier()
        return None
    partition, group_id = place.partition, place.group_id
    device = torch.device("cpu")
    is_last = partition.rank == partition_size - 1
    membership = LosingMembership(
        place.plans,
        group_id,
        [questions if is_last and group == group_id else None for group, questions in hears],
    )
    trainers: list[Trainer] = []
    computed: list[int] = []
    compute = Trainer._loss

    def count(trainer: Trainer, batch: Batch) -> torch.Tensor:
        computed.append(len(membership.commits))
        return compute(trainer, batch)

    def build(initialise: bool) -> Trainer:
        trainers.append(
            build_trainer(spec, partition, device, strategy=strategy, initialise=initialise)
        )
        return trainers[0]

    try:
        with mock.patch.object(Trainer, "_loss", count):
            train(build, membership, begins_run=True)
    finally:
        dist.barrier()
    return Survived(
        [commit.loss for commit in membership.commits],
        [commit.in_hand for commit in membership.commits],
        membership.breaks,
        len(computed),
        digest_of(trainers[0]),
    )
