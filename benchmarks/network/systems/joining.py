"""Our engine with one partition group that joins after some steps, for `benchmarks.join`.

`joining p=2 at=8`: the last group takes no part in the first eight steps, and joins then as the
product has it. Without `at` it never does.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.harness.site import Site
from benchmarks.network.systems.mics import settings_of
from mics_core.comm.partition import form_partition_group
from mics_core.comm.replication import Member
from mics_core.comm.store import StoreHost, host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.entering import Entry, enter
from mics_core.engine.holding import Holding
from mics_core.engine.preparing import Preparation
from mics_core.engine.trainer import StepBroken, Trainer
from mics_core.spec import JobSpec

__all__ = ["TIMES_VARIABLE", "build"]

TIMES_VARIABLE = "BENCH_JOIN_STEPS"
"""Names the file into which rank 0 writes a line a step: when it ended, and groups with a share."""
_TIMEOUT_S = 240.0


def build(name: str, spec: JobSpec, site: Site) -> _Joining:
    """Build one worker's part; all workers of the world must call it."""
    settings = settings_of(name)
    size, at = int(settings["p"]), int(settings.get("at", -1))
    ranks = [list(range(first, first + size)) for first in range(0, site.world_size, size)]
    partition = form_partition_group(ranks, list(site.nodes_of_ranks), torch.device("cpu"))
    groups = tuple(range(len(ranks)))
    members, group_id = groups[:-1], site.rank // size
    sized = spec.model_copy(update={"partition_size": size})
    trainer = build_trainer(sized, partition, torch.device("cpu"), initialise=group_id in members)
    stores = [host_store(site.master_address) for _ in range(2)] if site.rank == 0 else []
    box: list[list[int]] = [[store.port for store in stores]]
    dist.broadcast_object_list(box, src=0)
    first, second = (StoreAddress(site.master_address, port) for port in box[0])
    plans = (
        GenerationPlan(1, members, first, "It begins."),
        GenerationPlan(2, groups, second, "A group joins.", newcomers=groups[-1:]),
    )
    if group_id not in members:
        trainer.warm_up()
    return _Joining(trainer, plans, group_id, at, stores)


class _Joining:
    def __init__(
        self,
        trainer: Trainer,
        plans: tuple[GenerationPlan, GenerationPlan],
        group_id: int,
        at: int,
        stores: list[StoreHost],
    ):
        is_member = group_id in plans[0].groups
        self.description = f"{plans[1].reason} {len(plans[0].groups)} groups train before."
        self.question = None
        self._trainer = trainer
        self._plans = plans
        self._group_id = group_id
        self._at = at
        self._stores = stores  # rank 0 keeps them for the others
        self._holding = Holding(0, is_member)
        self._prepared = self._prepare(plans[0]) if is_member else None
        self._entry: Entry | None = None
        self._active: tuple[int, ...] = ()
        if is_member:
            self._enter()

    def step(self, index: int) -> float:
        if index == self._at - 1:
            # The product hears of a generation within a step, and connects beside it.
            self._prepared = self._prepare(self._plans[1])
        elif index == self._at:
            self._enter()
        entry = self._entry
        if entry is None:
            return 0.0
        number = entry.replication.member.generation
        outcome = self._trainer.run_step(index, entry.replication, number, self._active)
        if isinstance(outcome, StepBroken):
            raise RuntimeError(f"step {index} was not committed: {outcome.error}")
        self._active = outcome.up_to_date
        self._holding = Holding(index + 1, entry.position in self._active)
        if self._group_id == 0 and self._trainer.partition.rank == 0:
            with Path(os.environ[TIMES_VARIABLE]).open("a", encoding="utf-8") as file:
                file.write(f"{time.monotonic()} {outcome.num_groups}\n")
        # Every worker knows the whole loss; they are added up.
        return outcome.loss / (entry.replication.size * self._trainer.partition.size)

    def _prepare(self, plan: GenerationPlan) -> Preparation:
        partition = self._trainer.partition
        position = plan.position_of(self._group_id)
        assert position is not None
        member = Member(
            plan.number, partition.rank, position, len(plan.groups), node=partition.node
        )
        return Preparation(plan, member, superseded=lambda: False, timeout_s=_TIMEOUT_S)

    def _enter(self) -> None:
        assert self._prepared is not None
        before = self._entry
        entry = enter(
            self._trainer,
            self._prepared,
            self._holding,
            superseded=lambda: False,
            silence_s=_TIMEOUT_S,
        )
        if isinstance(entry, str):
            raise RuntimeError(entry)
        if before is not None:
            before.close()
        self._prepared, self._entry, self._active = None, entry, entry.active
