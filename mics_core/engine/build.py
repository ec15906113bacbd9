"""Puts one worker's trainer together from the job specification."""

from __future__ import annotations

import os

import torch

from mics_core.comm.partition import PartitionGroup
from mics_core.data.samples import Samples
from mics_core.data.sources import build_samples
from mics_core.engine.models import build_meta_model
from mics_core.engine.optimizer import build_optimizer
from mics_core.engine.restore import restore_newest
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.engine.starting_weights import load_starting_weights
from mics_core.engine.strategy import settle_strategy
from mics_core.engine.trainer import Trainer
from mics_core.engine.units import UnitDriver
from mics_core.planner.strategy import Strategy
from mics_core.spec.job import JobSpec, TransformersModel

__all__ = ["build_trainer"]


def build_trainer(
    spec: JobSpec,
    partition: PartitionGroup,
    device: torch.device,
    *,
    samples: Samples | None = None,
    strategy: Strategy | None = None,
    initialise: bool = True,
) -> Trainer:
    """Build the shards, the optimizer and the data of one worker.

    All workers of the partition group must call it.

    Args:
        spec: The job.
        partition: The worker's partition group.
        device: Where the shards live.
        samples: The training data, when the caller holds it already.
        strategy: How the group moves its model states; without, as the job says and for the rest
            as the paper does.
        initialise: Whether to draw initial weights, or to restore the newest checkpoint. A worker
            that will copy its state from peers does without.

    Raises:
        SpecificationError: The model cannot be built.
        DataError: The data cannot be read or holds no sample.
        CheckpointError: The newest whole checkpoint cannot be loaded, or storage not be reached.
    """
    training = spec.training
    options = ShardingOptions(
        device=device,
        precision=training.precision,
        activation_checkpointing=training.settled_activation_checkpointing,
        compiles_blocks=spec.engine.compile,
        offloads=spec.engine.offload_optimizer,
        seed=training.seed,
        initialise=initialise,
    )
    # One worker that holds everything needs no FSDP2, unless for its precision or offload policy.
    is_whole = partition.size == 1 and training.precision != "bf16" and not options.offloads
    is_bitwise = training.determinism == "bitwise"
    _use_deterministic_kernels(is_bitwise)
    sharded = shard_model(build_meta_model(spec), None if is_whole else partition.mesh, options)
    units = UnitDriver(
        sharded,
        partition,
        settle_strategy(spec.engine, partition.grid) if strategy is None else strategy,
        dtype=options.shard_dtype,
        device=device,
        bucket_bytes=int(spec.engine.bucket_mib * (1 << 20)),
        offloads=options.offloads,
        ordered_micro_batches=spec.num_micro_batches(partition.size) if is_bitwise else None,
    )
    model = sharded.module
    optimizer = build_optimizer(model, training.optimizer)
    if samples is None:
        samples = build_samples(spec)
    trainer = Trainer(spec, model, units, optimizer, samples, partition, device)
    if not initialise:
        trainer.warm_up()
    else:
        restored = restore_newest(spec.checkpoint, partition, model, optimizer, trainer.data_order)
        trainer.committed_steps, trainer.passed_over = restored.step, restored.passed_over
        weights = spec.model.weights if isinstance(spec.model, TransformersModel) else None
        if weights is not None and trainer.committed_steps == 0:
            load_starting_weights(weights, model, build_meta_model(spec), partition)
    return trainer


def _use_deterministic_kernels(yes: bool) -> None:
    """Have torch refuse kernels whose result depends on timing; a setting of the whole process."""
    if yes:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses cuBLAS
    torch.use_deterministic_algorithms(yes)
    # It would write into every new buffer to expose those who read it unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
