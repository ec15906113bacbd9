"""Our engine with fixed members, as under `torchrun`: `fixed p=2`.

Its loop runs without a supervisor, links or Ray: what `benchmarks.steady` holds an elastic run
against.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from benchmarks.harness.site import Site
from benchmarks.network.systems.blocks import Gate, GatedMembership, InBlocks, form_group
from mics_core.comm.store import host_store
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.build import build_trainer
from mics_core.engine.membership import StaticMembership
from mics_core.spec import JobSpec

__all__ = ["build"]


def build(name: str, spec: JobSpec, site: Site) -> InBlocks:
    """Build one worker's part; all workers of the world must call it."""
    partition = form_group(name, site)
    store = host_store(site.master_address) if site.rank == 0 else None
    box = [store.port if store is not None else 0]
    dist.broadcast_object_list(box, src=0)
    groups = tuple(range(site.world_size // partition.size))
    address = StoreAddress(site.master_address, box[0])
    plan = GenerationPlan(1, groups, address, "All workers start together.")
    gate = Gate()
    membership = _Gated(gate, plan, site.rank // partition.size)
    return InBlocks(
        lambda initialise: build_trainer(
            spec, partition, torch.device("cpu"), initialise=initialise
        ),
        membership,
        gate,
        spec,
        f"{len(groups)} groups that never change",
        store,
    )


class _Gated(GatedMembership, StaticMembership):
    pass
