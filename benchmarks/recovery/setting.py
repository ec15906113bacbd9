"""What all systems of the comparison have in common: the model, the batch and the groups."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.jobs import emulated_model, training_job
from mics_core.spec import JobSpec

__all__ = ["GLOBAL_BATCH_SIZE", "MODEL", "NUM_GROUPS", "PARTITION_SIZE", "build_spec"]

MODEL = emulated_model(width=256, num_layers=4, forward_s=0.005)
"""Its compute is emulated: with six workers' own, two cores would be all that is measured."""
PARTITION_SIZE = 2
NUM_GROUPS = 3
GLOBAL_BATCH_SIZE = 24
"""Twelve micro-batches of two samples: four for each of three groups, six for each of two."""


def build_spec(tokens: Path, global_batch_size: int = GLOBAL_BATCH_SIZE) -> JobSpec:
    """Return the training that all systems do."""
    return training_job(tokens, MODEL, global_batch_size=global_batch_size, sequence_length=16)
