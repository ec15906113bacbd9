"""Builds the batch of one worker: a pure function of the seed and of positions in the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mics_core.data.masking import Masking, mask_sample
from mics_core.data.order import sample_index
from mics_core.data.samples import IGNORED_LABEL, Int64Array, Sample, Samples

__all__ = ["Batch", "build_batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples side by side. All arrays are int64 of shape (micro_batch_size, sequence_length)."""

    input_ids: Int64Array
    """Token ids."""
    labels: Int64Array
    """What the model should say at each token; `IGNORED_LABEL` where there is no loss."""
    attention_mask: Int64Array | None
    """1 where attention may look; none if no sample brought a mask."""
    num_tokens: int
    """Labels that enter the loss."""


def build_batch(
    samples: Samples, positions: range, *, seed: int, masking: Masking | None = None
) -> Batch:
    """Return the batch of the samples that stand at some positions of the run.

    Args:
        samples: The collection.
        positions: Positions of the endless sequence, as `order.positions_of_worker` gives them.
        seed: The run's seed; it orders and masks the samples.
        masking: How samples are masked; none to take their labels as they are.

    Raises:
        DataError: A sample breaks a rule of its source.
        ValueError: No positions.
    """
    chosen = []
    for position in positions:
        sample = samples[sample_index(position, len(samples), seed)]
        chosen.append(sample if masking is None else mask_sample(sample, masking, seed, position))
    if not chosen:
        raise ValueError("a batch needs at least one position, but the range is empty.")
    labels = np.stack([sample.labels for sample in chosen])
    return Batch(
        input_ids=np.stack([sample.input_ids for sample in chosen]),
        labels=labels,
        attention_mask=_attention_mask(chosen),
        num_tokens=int(np.count_nonzero(labels != IGNORED_LABEL)),
    )


def _attention_mask(chosen: list[Sample]) -> Int64Array | None:
    """Stack the masks; a sample without one beside samples with one is all real tokens."""
    if all(sample.attention_mask is None for sample in chosen):
        return None
    return np.stack(
        [
            np.ones_like(sample.input_ids)
            if sample.attention_mask is None
            else sample.attention_mask
            for sample in chosen
        ]
    )
