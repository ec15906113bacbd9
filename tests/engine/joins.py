"""Functions that the worker pool runs: a run whose last group joins while the others train."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partialmethod
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.harness.digest import digest_of
from mics_core.comm.copies import Copies
from mics_core.comm.store import host_store
from mics_core.data.batches import Batch
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine import copying, entering
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import LoopOptions, train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import Trainer
from mics_core.spec import JobSpec
from tests.engine.layouts import partition_group

WAITS_FOR = 3
"""Rounds of waiting after which a copy that is waited for arrives."""


class JoiningMembership(StaticMembership):
    """A second generation with more groups is announced after some steps of the first.

    Args:
        plans: The two generations.
        group_id: This worker's partition group.
        join_after: Steps of the first generation.
        arrive_after: Steps that a newcomer must have heard before a byte of the copy is taken.
    """

    def __init__(
        self,
        plans: tuple[GenerationPlan, GenerationPlan],
        group_id: int,
        join_after: int,
        arrive_after: int,
    ):
        super().__init__(plans[0], group_id)
        self._plans = plans
        self._join_after = join_after
        self._arrive_after = arrive_after
        self.entries: list[tuple[int, int]] = []
        self._is_heard = False
        self.may_arrive = threading.Event()

    def pending(self) -> int:
        late = self.group_id not in self._plans[0].groups
        return 2 if late or len(self.commits) >= self._join_after else 1

    def next_plan(self, after: int) -> GenerationPlan:
        return self._plans[self.pending() - 1]

    def plan(self, number: int) -> GenerationPlan | None:
        if not self._is_heard:  # a supervisor may take its time to answer
            self._is_heard = True
            return None
        return self._plans[number - 1]

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        assert connect_s >= 0
        self.entries.append((generation, step))

    def committed(self, commit: StepCommit, took_s: float) -> None:
        super().committed(commit, took_s)
        if len(self.commits) >= self._arrive_after:
            self.may_arrive.set()


@dataclass(frozen=True)
class Joined:
    """What one worker saw."""

    losses: list[float]
    num_groups: list[int]
    entries: list[tuple[int, int]]
    digest: str
    graphs: tuple[int, int]
    """Graphs that were compiled when it was ready, and at the end."""
    rounds: int
    """How often it asked its peers whether all have their copy, and train on."""


trace_only = partialmethod(nn.Module.compile, backend="aot_eager")
"""Traces graphs as any compilation does, and spares the minute that the code for them takes."""


def num_graphs() -> int:
    """Graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


def train_with_a_join(
    spec: JobSpec,
    groups: tuple[int, int],
    partition_size: int,
    join_after: int,
    arrive_after: int,
    begins_run: bool,
    compiles_s: float = 0.0,
    silence_s: float = 15.0,
    snapshot_s: float = 0.0,
    most_kept: int | None = None,
) -> Joined | None:
    """Train with `groups[0]` partition groups at first and `groups[1]` later.

    With `begins_run` the newcomers have initial weights, which are states of an older step. Their
    first micro-batch of the run takes `compiles_s` longer. Each piece of a member's snapshot takes
    `snapshot_s` longer. With `most_kept` the newcomers may keep so many gradients, and the copy
    takes until all have waited for it for some rounds.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    before, after = groups
    busy = after * partition_size
    ranks = [list(range(first, first + partition_size)) for first in range(0, busy, partition_size)]
    if busy < world:
        ranks.append(list(range(busy, world)))
    device = torch.device("cpu")
    partition = partition_group(ranks, ["node"] * world, device)
    stores = [host_store("127.0.0.1") for _ in range(2)]
    ports: list[Any] = [store.port for store in stores]
    dist.broadcast_object_list(ports, src=0)
    if rank >= busy:
        dist.barrier()
        return None
    plans = (
        GenerationPlan(1, tuple(range(before)), StoreAddress("127.0.0.1", ports[0]), "begins"),
        GenerationPlan(
            2,
            tuple(range(after)),
            StoreAddress("127.0.0.1", ports[1]),
            "joins",
            newcomers=tuple(range(before, after)),
        ),
    )
    group_id = rank // partition_size
    membership = JoiningMembership(plans, group_id, join_after, arrive_after)
    trainers: list[Trainer] = []
    graphs: list[int] = []

    def build(initialise: bool) -> Trainer:
        trainers.append(build_trainer(spec, partition, device, initialise=initialise))
        graphs.append(num_graphs())
        return trainers[0]

    receive = Copies.receive

    def receive_later(copies: Copies, values: Any) -> None:
        assert membership.may_arrive.wait(60.0)
        receive(copies, values)

    take = copying._copy_of

    def take_later(*arguments: Any) -> torch.Tensor:
        time.sleep(snapshot_s)
        return take(*arguments)

    must_wait, rounds = Trainer.must_wait_for_copy, [0]

    def wait_for_copy(trainer: Trainer, limit_s: float) -> bool:
        rounds[0] += 1
        if rounds[0] == WAITS_FOR:
            membership.may_arrive.set()
        return must_wait(trainer, limit_s)

    def most_kept_bytes(gradient_bytes: int, num_workers: int) -> int:
        if most_kept is None:
            return limit_of(gradient_bytes, num_workers)
        return most_kept * gradient_bytes

    compute, limit_of, is_newcomer = Trainer._loss, entering.most_kept_bytes, group_id >= before
    compiled: list[bool] = []

    def compute_later(trainer: Trainer, batch: Batch) -> torch.Tensor:
        if is_newcomer and trainers and not compiled:
            compiled.append(True)
            time.sleep(compiles_s)
        return compute(trainer, batch)

    try:
        with (
            mock.patch.object(Copies, "receive", receive_later),
            mock.patch.object(Trainer, "_loss", compute_later),
            mock.patch.object(copying, "_copy_of", take_later),
            mock.patch.object(Trainer, "must_wait_for_copy", wait_for_copy),
            mock.patch.object(entering, "most_kept_bytes", most_kept_bytes),
            mock.patch.object(nn.Module, "compile", trace_only),
        ):
            train(
                build,
                membership,
                begins_run=begins_run or not is_newcomer,
                options=LoopOptions(silence_s=silence_s),
            )
    finally:
        dist.barrier()
    return Joined(
        [commit.loss for commit in membership.commits],
        [commit.num_groups for commit in membership.commits],
        membership.entries,
        digest_of(trainers[0]),
        (graphs[0], num_graphs()),
        rounds[0],
    )
