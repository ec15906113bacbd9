"""DeepSpeed: ZeRO-3 of the newest release, and MiCS of the last release in which it trains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.comm.torch import TorchBackend

from benchmarks.harness.site import Site
from benchmarks.network.systems.plain import PlainTraining, build_optimizer, build_whole_model
from mics_core.spec import JobSpec

__all__ = ["build"]


def build(name: str, spec: JobSpec, site: Site) -> PlainTraining:
    """Build one worker's part; all workers of the world must call it.

    Args:
        name: `deepspeed zero3`, `deepspeed mics` (shards inside a node), or
            `deepspeed mics p=8` (another shard size; hierarchical where it spans nodes).
        spec: What to train.
        site: The worker's place.
    """
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    model = build_whole_model(spec)
    zero: dict[str, Any] = {"stage": 3}
    if "mics" in name.split():
        zero |= _mics_settings(name, site)
    config = {
        "train_micro_batch_size_per_gpu": spec.training.micro_batch_size,
        "gradient_accumulation_steps": spec.num_micro_batches(site.world_size),
        "zero_optimization": zero,
        "gradient_clipping": 0.0,  # newer releases clip unless told not to
    }
    if "mics" in name.split():
        os.environ["NDEV_PER_NODE"] = str(site.workers_per_node)
        TorchBackend.all_gather_coalesced = _plain_gathers
        deepspeed.zero.MiCS_Init(module=model, config_dict_or_path=config)  # in place
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer(model, spec), config=config
    )
    return _DeepSpeed(engine, optimizer, spec, site)


class _DeepSpeed(PlainTraining):
    """DeepSpeed's engine counts micro-batches itself and updates after the last."""

    model: Any

    def backward(self, loss: torch.Tensor) -> None:
        """Have the engine scale and add up, and update after the last micro-batch."""
        self.model.backward(loss)
        self.model.step()

    def update(self) -> None:
        """Do nothing: `backward` has."""


def _mics_settings(name: str, site: Site) -> dict[str, Any]:
    sizes = [int(word[2:]) for word in name.split() if word.startswith("p=")]
    size = sizes[0] if sizes else site.workers_per_node
    return {
        "mics_shard_size": size,
        "mics_hierarchical_params_gather": size > site.workers_per_node,
    }


class _All:
    """Several collectives under way, waited for as one."""

    def __init__(self, works: Sequence[Any]):
        self._works = works

    def wait(self) -> None:
        for work in self._works:
            work.wait()


def _plain_gathers(
    self: TorchBackend,
    output_tensors: Sequence[torch.Tensor],
    input_tensors: Sequence[torch.Tensor],
    group: Any = None,
    async_op: bool = False,
) -> _All | None:
    """Gather tensor by tensor: gloo has no coalescing, on which DeepSpeed's own version relies."""
    works = _All(
        [
            dist.all_gather_into_tensor(output, shard, group=group, async_op=True)
            for output, shard in zip(output_tensors, input_tensors, strict=True)
        ]
    )
    if async_op:
        return works
    works.wait()
    return None
