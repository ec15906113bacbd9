"""Our engine. `mics p=2` trains with partition groups of two, `mics auto` as the planner chooses.

Further words set fields of the job's `engine` part, for instance
`mics p=8 reshard=node accumulation=node`; `micro_batch=2` and `checkpointing=true` are of its
`training` part. What the name leaves open the planner chooses, as for any job that names its
cluster; with `planned=no` nothing is measured, and the engine settles it as for a job without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.harness.site import Site
from benchmarks.network.systems.tuning import tune
from mics_core.comm.connecting import connect
from mics_core.comm.nodes import node_grid
from mics_core.comm.partition import form_partition_group
from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.store import StoreHost, host_store
from mics_core.elastic.plan import StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.strategy import settle_strategy
from mics_core.engine.trainer import StepBroken, Trainer
from mics_core.planner.question import Question
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from mics_core.spec.planning import settled_spec, workload_of

__all__ = ["build", "settings_of"]

_TIMEOUT_S = 240.0
_OF_TRAINING = {
    "micro_batch": "micro_batch_size",
    "checkpointing": "activation_checkpointing",
}


@dataclass(frozen=True, slots=True)
class _Choice:
    """The job as it is trained, and why so."""

    spec: JobSpec
    partition_size: int
    reason: str
    strategy: Strategy | None
    """None for what the engine settles by itself, without a planner."""
    question: Question | None


def settings_of(name: str) -> dict[str, str]:
    """Return the settings that a name carries: `mics p=2 reshard=never` has two."""
    return dict(word.split("=", 1) for word in name.split()[1:] if "=" in word)


def build(name: str, spec: JobSpec, site: Site) -> _Mics:
    """Build one worker's part; all workers of the world must call it."""
    choice = _choose(name, spec, site)
    size, num_groups = choice.partition_size, site.world_size // choice.partition_size
    ranks = [list(range(first, first + size)) for first in range(0, site.world_size, size)]
    device = torch.device("cpu")
    partition = form_partition_group(ranks, list(site.nodes_of_ranks), device)
    trainer = build_trainer(choice.spec, partition, device, strategy=choice.strategy)
    store, address = _share_store(site)
    member = Member(1, site.rank % size, site.rank // size, num_groups, node=partition.node)
    replication = connect(
        address,
        member,
        superseded=lambda: False,
        timeout_s=_TIMEOUT_S,
        memory=trainer.gradient_memory,
    )
    return _Mics(trainer, replication, site, store, choice)


class _Mics:
    def __init__(
        self,
        trainer: Trainer,
        replication: ReplicationGroup,
        site: Site,
        store: StoreHost | None,
        choice: _Choice,
    ):
        self.description = choice.reason
        self.question = choice.question
        self._trainer = trainer
        self._replication = replication
        self._site = site
        self._store = store  # rank 0 keeps it for the others

    def step(self, index: int) -> float:
        outcome = self._trainer.run_step(index, self._replication, 1)
        if isinstance(outcome, StepBroken):
            raise RuntimeError(f"step {index} was not committed: {outcome.error}")
        return outcome.loss / self._site.world_size  # every worker knows the whole loss


def _choose(name: str, spec: JobSpec, site: Site) -> _Choice:
    """Have the planner choose what the name leaves open, from what it measures here."""
    settings = settings_of(name)
    size, is_planned = settings.pop("p", "auto"), settings.pop("planned", "yes") == "yes"
    asked = _changed(spec, size if size == "auto" else int(size), settings)
    if not is_planned:
        return _Choice(asked, int(size), "Not planned.", None, None)
    if len({*site.nodes_of_ranks}) == 1 and size != "auto":
        # One node has no links to measure, and a measuring model would spoil its peak of memory.
        strategy = settle_strategy(asked.engine, node_grid(list(site.nodes_of_ranks)))
        return _Choice(asked, int(size), "One node: not planned.", strategy, None)
    tuned = tune(spec, asked, site)
    plan, layout = tuned.plan, tuned.plan.choice.layout
    return _Choice(
        settled_spec(asked, layout),
        layout.partition_size,
        f"p = {layout.partition_size}, {layout.strategy}: {plan.reason}",
        layout.strategy,
        Question(tuned.shape, tuned.profile, layout, workload_of(asked)),
    )


def _changed(spec: JobSpec, size: int | str, settings: dict[str, str]) -> JobSpec:
    value: dict[str, Any] = spec.model_dump()
    value["partition_size"] = size
    for name, setting in settings.items():
        part = "training" if name in _OF_TRAINING else "engine"
        value.setdefault(part, {})[_OF_TRAINING.get(name, name)] = setting
    return JobSpec.model_validate(value)


def _share_store(site: Site) -> tuple[StoreHost | None, StoreAddress]:
    """Start the generation's store on rank 0 and tell everybody where it is."""
    store = None
    if site.rank == 0:
        store = host_store(site.master_address)
    box = [store.port if store is not None else 0]
    dist.broadcast_object_list(box, src=0)
    return store, StoreAddress(site.master_address, box[0])
