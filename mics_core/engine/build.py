"""Puts one worker's trainer together from the job specification."""

from __future__ import annotations

import torch

from mics_core.comm.partition import PartitionGroup
from mics_core.data.samples import Samples
from mics_core.data.sources import build_samples
from mics_core.engine.checkpoint import restore_newest
from mics_core.engine.models import build_meta_model
from mics_core.engine.optimizer import build_optimizer
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.engine.trainer import Trainer
from mics_core.spec.job import JobSpec

__all__ = ["build_trainer"]


def build_trainer(
    spec: JobSpec,
    partition: PartitionGroup,
    device: torch.device,
    *,
    samples: Samples | None = None,
    initialise: bool = True,
) -> Trainer:
    """Build the shards, the optimizer and the data of one worker.

    All workers of the partition group must call it.

    Args:
        spec: The job.
        partition: The worker's partition group.
        device: Where the shards live.
        samples: The training data, when the caller holds it already.
        initialise: Whether to draw initial weights, or to restore the newest checkpoint. A worker
            that will copy its state from peers does without.

    Raises:
        SpecificationError: The model cannot be built.
        DataError: The data cannot be read or holds no sample.
        CheckpointError: The newest checkpoint cannot be loaded.
    """
    training = spec.training
    options = ShardingOptions(
        device=device,
        precision=training.precision,
        activation_checkpointing=training.activation_checkpointing,
        seed=training.seed,
        initialise=initialise,
    )
    model = shard_model(build_meta_model(spec), partition.mesh, options)
    optimizer = build_optimizer(model, training.optimizer)
    if samples is None:
        samples = build_samples(spec)
    trainer = Trainer(spec, model, optimizer, samples, partition, device)
    if initialise:
        trainer.committed_steps = restore_newest(spec.checkpoint, partition, model, optimizer)
    return trainer
