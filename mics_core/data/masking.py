"""Masking for the masked objective.

BERT's rule (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", NAACL 2019, section 3.1): 15 % of the tokens are to be predicted, of which 80 % are
replaced by the mask, 10 % by a random token, and 10 % stay. As in RoBERTa the choice is made anew
each time a sample is used: it depends on the position in the run, and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mics_core.data.order import stream_seed
from mics_core.data.samples import IGNORED_LABEL, Sample
from mics_core.data.tokenizer import build_tokenizer
from mics_core.spec.job import FileData, JobSpec

__all__ = ["Masking", "build_masking", "mask_sample"]


@dataclass(frozen=True, slots=True)
class Masking:
    """How samples are masked."""

    mask_id: int
    """Id of the mask token."""
    num_ids: int
    """Random replacements are drawn from range(num_ids)."""
    probability: float = 0.15
    """Share of the tokens that are to be predicted."""
    mask_share: float = 0.8
    """Share of those that become the mask."""
    random_share: float = 0.1
    """Share of those that become a random token; the rest stays."""


def build_masking(spec: JobSpec) -> Masking | None:
    """Return the masking of a job; none for the causal objective and for users' own labels.

    Raises:
        DataError: The tokenizer file cannot be read.
    """
    if spec.objective != "masked" or not isinstance(spec.data, FileData):
        return None
    tokenizer = build_tokenizer(spec.tokenizer)
    return Masking(mask_id=tokenizer.mask_id, num_ids=tokenizer.num_ids)


def mask_sample(sample: Sample, masking: Masking, seed: int, position: int) -> Sample:
    """Return a masked copy of a sample; at least one of its tokens is to be predicted.

    Args:
        sample: Unmasked sample; its `labels` are not used.
        masking: The rule.
        seed: The run's seed.
        position: Position of the sample in the endless sequence of the run.
    """
    generator = np.random.default_rng(stream_seed(seed, position))
    length = len(sample.input_ids)
    is_predicted = generator.random(length) < masking.probability
    is_predicted[generator.integers(length)] |= not is_predicted.any()
    fate = generator.random(length)
    random_ids = generator.integers(masking.num_ids, size=length)
    becomes_mask = is_predicted & (fate < masking.mask_share)
    becomes_random = (
        is_predicted & ~becomes_mask & (fate < masking.mask_share + masking.random_share)
    )
    input_ids = np.where(becomes_mask, masking.mask_id, sample.input_ids)
    return Sample(
        input_ids=np.where(becomes_random, random_ids, input_ids),
        labels=np.where(is_predicted, sample.input_ids, IGNORED_LABEL),
        attention_mask=sample.attention_mask,
    )
