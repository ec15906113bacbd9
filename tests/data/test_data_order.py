"""The order of the data: permutations of epochs, and the division of a step among the groups."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.data.order import (
    MicroBatch,
    divide_what_is_left,
    micro_batch_of_step,
    micro_batches_of_group,
    positions_of_worker,
    sample_index,
    stream_seed,
)

pytestmark = pytest.mark.pure


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    start = epoch * num_samples
    return [sample_index(start + offset, num_samples, seed) for offset in range(num_samples)]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 3), (2**63 - 1, 10**6)])
def test_every_epoch_uses_each_sample_once(seed: int, epoch: int) -> None:
    for num_samples in range(1, 201):
        assert sorted(epoch_order(num_samples, seed, epoch)) == list(range(num_samples))


@given(st.integers(1, 10**12), st.integers(0, 10**18), st.integers(0, 2**63 - 1))
def test_any_position_of_any_collection_has_a_sample(
    num_samples: int, position: int, seed: int
) -> None:
    assert 0 <= sample_index(position, num_samples, seed) < num_samples


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_never_changes_between_versions() -> None:
    # A run that resumes from a checkpoint with a newer version must see the same data.
    assert epoch_order(10, 0, 0) == [5, 6, 2, 4, 8, 3, 1, 0, 7, 9]


def test_all_orders_of_a_small_epoch_are_about_equally_frequent() -> None:
    counts = Counter(tuple(epoch_order(4, 7, epoch)) for epoch in range(2400))
    # Each of the 24 orders is due 100 times; 5 standard deviations are 49.
    assert len(counts) == 24
    assert max(abs(count - 100) for count in counts.values()) < 49


def test_neighbours_and_places_are_independent() -> None:
    num_samples = 1000
    order = epoch_order(num_samples, 3, 1)
    steps = Counter((b - a) % num_samples for a, b in pairwise(order))
    assert max(steps.values()) < 10  # a line through the samples would give one difference alone
    first_half = sum(sample < num_samples // 2 for sample in order[: num_samples // 2])
    assert 200 < first_half < 300


def test_a_position_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="position -1 of 5 samples"):
        sample_index(-1, 5, 0)
    with pytest.raises(ValueError, match="at least one sample"):
        sample_index(0, 0, 0)


def test_groups_cover_all_micro_batches_evenly() -> None:
    for num_groups in range(1, 65):
        for num_micro_batches in range(0, 3 * num_groups + 2, 1 + num_groups // 8):
            parts = [
                micro_batches_of_group(num_micro_batches, num_groups, group)
                for group in range(num_groups)
            ]
            assert list(chain.from_iterable(parts)) == list(range(num_micro_batches))
            sizes = {len(part) for part in parts}
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.long
@settings(max_examples=200, deadline=None, database=None)
@given(st.integers(0, 40), st.integers(1, 8), st.randoms(use_true_random=False))
def test_what_is_left_of_a_step_is_divided_evenly(
    num_micro_batches: int, num_groups: int, random: Random
) -> None:
    done: list[set[int]] = [set() for _ in range(num_groups)]
    for index in random.sample(range(num_micro_batches), random.randint(0, num_micro_batches)):
        done[random.randrange(num_groups)].add(index)
    left = divide_what_is_left(num_micro_batches, done)
    assert sorted(chain(*done, *left)) == list(range(num_micro_batches))
    sizes = [len(part) for part in left]
    assert max(sizes) - min(sizes) <= 1
    if not any(done):
        runs = [micro_batches_of_group(num_micro_batches, num_groups, g) for g in range(num_groups)]
        assert left == [tuple(run) for run in runs]


@pytest.mark.parametrize("group_index", [-1, 4])
def test_a_group_outside_the_generation_is_refused(group_index: int) -> None:
    with pytest.raises(ValueError, match="not one of the generation's 4 groups"):
        micro_batches_of_group(8, 4, group_index)


@pytest.mark.parametrize("partition_size", [1, 2, 3, 6])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 5, 8])
def test_the_global_batch_does_not_depend_on_its_division(
    partition_size: int, num_groups: int
) -> None:
    sizes = {"global_batch_size": 36, "micro_batch_size": 2, "partition_size": partition_size}
    step, num_micro_batches = 5, 36 // (2 * partition_size)
    used = [
        position
        for group in range(num_groups)
        for micro_batch in micro_batches_of_group(num_micro_batches, num_groups, group)
        for rank in range(partition_size)
        for position in positions_of_worker(step, micro_batch, rank=rank, **sizes)
    ]
    assert used == list(range(step * 36, (step + 1) * 36))


def test_a_worker_takes_the_slice_of_its_rank() -> None:
    sizes = {"global_batch_size": 24, "micro_batch_size": 2, "partition_size": 3}
    assert micro_batch_of_step(2, 1, **sizes) == MicroBatch(1, first_position=54, num_samples=6)
    assert positions_of_worker(2, 1, rank=2, **sizes) == range(58, 60)


def test_what_lies_outside_the_step_or_the_group_is_refused() -> None:
    sizes = {"global_batch_size": 24, "micro_batch_size": 2, "partition_size": 3}
    for micro_batch in (-1, 4):
        with pytest.raises(ValueError, match="does not lie inside a global batch of 24"):
            positions_of_worker(0, micro_batch, rank=0, **sizes)
    for rank in (-1, 3):
        with pytest.raises(ValueError, match="not one of the group's 3 workers"):
            positions_of_worker(0, 0, rank=rank, **sizes)


@given(st.lists(st.lists(st.integers(0, 2**63), min_size=1, max_size=4), min_size=2, unique_by=str))
def test_stream_seeds_differ_and_have_63_bits(streams: list[list[int]]) -> None:
    seeds = [stream_seed(*parts) for parts in streams]
    assert len(set(seeds)) == len(streams)
    assert all(0 <= seed < 2**63 for seed in seeds)
