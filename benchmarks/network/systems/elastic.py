"""Our engine as a member of an elastic run: `elastic p=2`.

The workers belong to a job whose supervisor is an actor on a Ray cluster. They hold the same links
and lifelines to it as workers of a Ray Train run, enter the generation that it announces, report
every step and listen for losses. What stays away is only what Ray Train does to start them.
"""

from __future__ import annotations

import os
from functools import partial

import ray
import torch

from benchmarks.harness.site import Site
from benchmarks.network.systems.mics import settings_of
from mics_core.cluster.lifeline import Lifeline
from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Ready
from mics_core.cluster.names import NAMESPACE
from mics_core.cluster.reaching import SupervisorHandle
from mics_core.comm.partition import form_partition_group
from mics_core.comm.store import StoreHost, host_store
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.build import build_trainer
from mics_core.engine.entering import Entry, enter
from mics_core.engine.holding import Holding
from mics_core.engine.trainer import StepBroken, Trainer
from mics_core.spec import JobSpec

__all__ = ["ADDRESS_VARIABLE", "JOB_VARIABLE", "build"]

ADDRESS_VARIABLE = "BENCH_RAY_ADDRESS"
JOB_VARIABLE = "BENCH_JOB_ID"
_TIMEOUT_S = 120.0


def build(name: str, spec: JobSpec, site: Site) -> _Elastic:
    """Build one worker's part; all workers of the world must call it."""
    size = int(settings_of(name)["p"])
    ranks = [list(range(first, first + size)) for first in range(0, site.world_size, size)]
    device = torch.device("cpu")
    partition = form_partition_group(ranks, list(site.nodes_of_ranks), device)
    ray.init(os.environ[ADDRESS_VARIABLE], namespace=NAMESPACE, log_to_driver=False)
    supervisor = SupervisorHandle(os.environ[JOB_VARIABLE])
    group_id, rank = divmod(site.rank, size)
    link = SupervisorLink(supervisor, group_id, rank)
    link.start()
    find = partial(supervisor.ask, "lifeline", timeout_s=_TIMEOUT_S)
    lifeline = Lifeline(find, group_id, rank)
    trainer = build_trainer(spec, partition, device)
    store = host_store("0.0.0.0") if rank == 0 else None
    port = store.port if store is not None else None
    link.send(Ready(rank, partition.node, "127.0.0.1", os.getpid(), port))
    plan = None
    while plan is None:
        plan = partition.share_from_leader(link.next_plan(0) if rank == 0 else None)
    position = plan.position_of(group_id)
    assert position is not None
    holding = Holding(0, has_state=True)
    entry = enter(trainer, plan, position, holding, superseded=lambda: False, timeout_s=_TIMEOUT_S)
    if isinstance(entry, str):
        raise RuntimeError(entry)
    link.entered(plan.number, 0, entry.connect_s)
    return _Elastic(trainer, entry, plan, link, (lifeline, store))


class _Elastic:
    question = None

    def __init__(
        self,
        trainer: Trainer,
        entry: Entry,
        plan: GenerationPlan,
        link: SupervisorLink,
        kept: tuple[Lifeline, StoreHost | None],
    ):
        self.description = f"generation {plan.number} of {len(plan.groups)} groups"
        self._trainer = trainer
        self._entry = entry
        self._link = link
        self._kept = kept
        self._has_lost = partial(self._has_lost_member, plan.number)

    def step(self, index: int) -> float:
        # As `mics_core.engine.loop` does it.
        with self._trainer.partition.explained(self._link.group_id, lambda: index):
            outcome = self._trainer.run_step(
                index,
                self._entry.replication,
                self._link.pending(),
                self._entry.active,
                has_lost_member=self._has_lost,
            )
        if isinstance(outcome, StepBroken):
            raise RuntimeError(f"step {index} was not committed: {outcome.error}")
        self._link.committed(outcome)
        return outcome.loss / (self._trainer.partition.size * self._entry.replication.size)

    def _has_lost_member(self, number: int) -> bool:
        return self._link.after_loss() > number
