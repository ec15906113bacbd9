"""Batches: stacked samples, masking by position, and a global batch that no division changes."""

from __future__ import annotations

import numpy as np
import pytest

from mics_core.data.batches import Batch, build_batch
from mics_core.data.masking import Masking, mask_sample
from mics_core.data.order import micro_batches_of_group, positions_of_worker, sample_index
from mics_core.data.samples import IGNORED_LABEL, Sample
from mics_core.data.stream import StreamSamples, TokenStream

pytestmark = pytest.mark.pure

MASKING = Masking(mask_id=257, num_ids=257)


def sample_of(length: int, attention_mask: bool = False) -> Sample:
    ids = np.arange(length, dtype=np.int64)
    return Sample(ids, ids + 1, np.zeros(length, dtype=np.int64) if attention_mask else None)


def test_a_batch_is_the_samples_of_its_positions_one_below_the_other() -> None:
    samples = StreamSamples(TokenStream([np.arange(100)]), 9, "causal")
    positions = range(20, 24)
    batch = build_batch(samples, positions, seed=3)
    assert batch.input_ids.shape == batch.labels.shape == (4, 9)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int64
    for row, position in enumerate(positions):
        sample = samples[sample_index(position, len(samples), 3)]
        assert np.array_equal(batch.input_ids[row], sample.input_ids)
        assert np.array_equal(batch.labels[row], sample.labels)
    assert batch.attention_mask is None
    assert batch.num_tokens == 36


def test_samples_without_a_mask_are_all_attended_beside_samples_with_one() -> None:
    samples = [sample_of(3), sample_of(3, attention_mask=True)]
    batch = build_batch(samples, range(2), seed=0)
    assert batch.attention_mask is not None
    assert sorted(batch.attention_mask.tolist()) == [[0, 0, 0], [1, 1, 1]]


def test_ignored_labels_do_not_count_as_tokens() -> None:
    sample = Sample(np.zeros(3, np.int64), np.array([IGNORED_LABEL, 5, IGNORED_LABEL]))
    assert build_batch([sample], range(4), seed=0).num_tokens == 4


def test_a_batch_of_no_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one position"):
        build_batch([sample_of(3)], range(0), seed=0)


def test_masking_follows_the_shares_of_bert() -> None:
    sample = sample_of(100_000)
    masked = mask_sample(sample, Masking(mask_id=-1, num_ids=10**9), seed=1, position=2)
    predicted = masked.labels != IGNORED_LABEL
    changed = masked.input_ids != sample.input_ids
    assert np.array_equal(masked.labels[predicted], sample.input_ids[predicted])
    assert not changed[~predicted].any()
    assert predicted.mean() == pytest.approx(0.15, abs=0.005)
    assert (masked.input_ids[predicted] == -1).mean() == pytest.approx(0.8, abs=0.02)
    assert (~changed[predicted]).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_at_least_one_token_is_predicted(length: int) -> None:
    for position in range(200):
        masked = mask_sample(sample_of(length), MASKING, seed=0, position=position)
        assert (masked.labels != IGNORED_LABEL).any()


def test_masking_depends_on_seed_and_position_alone() -> None:
    sample = sample_of(64)

    def labels(seed: int, position: int) -> tuple[int, ...]:
        return tuple(mask_sample(sample, MASKING, seed, position).labels.tolist())

    assert labels(1, 2) == labels(1, 2)
    assert labels(1, 2) != labels(1, 3)
    assert labels(1, 2) != labels(2, 2)
    assert np.array_equal(sample.input_ids, np.arange(64))


@pytest.mark.parametrize("masking", [None, MASKING])
@pytest.mark.parametrize(("partition_size", "num_groups"), [(1, 5), (2, 3), (4, 1), (4, 3)])
def test_the_global_batch_holds_the_same_samples_however_it_is_divided(
    partition_size: int, num_groups: int, masking: Masking | None
) -> None:
    stream = TokenStream([np.arange(256)])
    samples = StreamSamples(stream, 5, "causal" if masking is None else "masked")
    step, global_batch_size, micro_batch_size = 7, 24, 2
    whole = build_batch(
        samples,
        range(step * global_batch_size, (step + 1) * global_batch_size),
        seed=9,
        masking=masking,
    )
    num_micro_batches = global_batch_size // (partition_size * micro_batch_size)
    parts: list[Batch] = []
    for group in range(num_groups):
        for index in micro_batches_of_group(num_micro_batches, num_groups, group):
            for rank in range(partition_size):
                positions = positions_of_worker(
                    step,
                    index,
                    global_batch_size=global_batch_size,
                    micro_batch_size=micro_batch_size,
                    partition_size=partition_size,
                    rank=rank,
                )
                parts.append(build_batch(samples, positions, seed=9, masking=masking))
    assert np.array_equal(np.concatenate([part.input_ids for part in parts]), whole.input_ids)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), whole.labels)
    assert sum(part.num_tokens for part in parts) == whole.num_tokens
