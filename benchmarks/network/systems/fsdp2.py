"""PyTorch's own FSDP2: full sharding, and the two-dimensional mesh (HSDP) in three ways.

Every block is a unit, as in our engine, and everything else is left as it comes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from benchmarks.harness.site import Site
from benchmarks.network.systems.plain import PlainTraining, build_optimizer, build_whole_model
from mics_core.engine.sharding import block_names
from mics_core.spec import JobSpec

__all__ = ["build"]


@dataclass(frozen=True, slots=True)
class _Variant:
    """How FSDP2 is set up.

    Args:
        shards_in_node: Shard inside a node and replicate across nodes; else shard over the world.
        defers_all_reduce: All-reduce across nodes after the last micro-batch alone.
        keeps_parameters: Keep gathered parameters until the last micro-batch's backward.
    """

    shards_in_node: bool = False
    defers_all_reduce: bool = False
    keeps_parameters: bool = False


_VARIANTS = {
    "fsdp2 full": _Variant(),
    "fsdp2 2d": _Variant(shards_in_node=True),
    "fsdp2 2d deferred": _Variant(shards_in_node=True, defers_all_reduce=True),
    "fsdp2 2d deferred kept": _Variant(True, defers_all_reduce=True, keeps_parameters=True),
}


def build(name: str, spec: JobSpec, site: Site) -> PlainTraining:
    """Build one worker's part; all workers of the world must call it."""
    variant = _VARIANTS[name]
    model = build_whole_model(spec)
    if variant.shards_in_node:
        sizes = (site.num_nodes, site.workers_per_node)
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("nodes", "workers"))
    else:
        mesh = init_device_mesh("cpu", (site.world_size,))
    reshard = False if variant.keeps_parameters else None  # None: FSDP2's default
    blocks = [model.get_submodule(block) for block in block_names(model)]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    return _Fsdp2(model, build_optimizer(model, spec), spec, site, variant)


class _Fsdp2(PlainTraining):
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: JobSpec,
        site: Site,
        variant: _Variant,
    ):
        super().__init__(model, optimizer, spec, site)
        self._variant = variant

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Say what this micro-batch leaves for later."""
        model = cast("FSDPModule", self.model)
        if self._variant.defers_all_reduce:
            model.set_requires_all_reduce(is_last)
        if self._variant.keeps_parameters:
            model.set_reshard_after_backward(is_last)
        return nullcontext()
