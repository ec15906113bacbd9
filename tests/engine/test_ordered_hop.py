"""`determinism: bitwise`: one order of additions, whoever computes which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.data.order import divide_what_is_left, micro_batches_of_group
from mics_core.engine.ordered_hop import TreeSum, nodes_of
from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.test_strategies import STRATEGIES
from tests.engine.worker_pool import WorkerPool

SETTINGS = settings(max_examples=80, deadline=None, database=None)


def tree(values: list[float], first: int, size: int) -> float | None:
    """The definition: a node is the sum of its halves, of those that exist."""
    if first >= len(values):
        return None
    if size == 1:
        return values[first]
    left, right = tree(values, first, size // 2), tree(values, first + size // 2, size // 2)
    assert left is not None
    return left if right is None else left + right


def numbers(num_micro_batches: int, random: Random) -> list[float]:
    return [random.uniform(-1, 1) * 10 ** random.randint(-8, 8) for _ in range(num_micro_batches)]


def sum_over_groups(values: list[float], parts: Sequence[Sequence[int]]) -> list[int]:
    """Add up in groups and then over them, against the definition; return the nodes of each."""
    whole = TreeSum(len(values))
    num_nodes = []
    for part in parts:
        of_group = TreeSum(len(values))
        for index in part:
            leaf = torch.tensor(values[index], dtype=torch.float64)
            of_group.add(range(index, index + 1), leaf)
        assert [node for node, _ in of_group.nodes] == nodes_of(sorted(part), len(values))
        num_nodes.append(len(of_group.nodes))
        for node, total in of_group.nodes:
            whole.add(node, total)
    ((node, total),) = whole.nodes
    assert node == range(len(values))
    assert total is not None
    assert total.item() == tree(values, 0, 64)
    return num_nodes


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_split_over_groups_gives_the_bits_of_the_tree(
    num_micro_batches: int, num_groups: int, random: Random
) -> None:
    num_groups = min(num_groups, num_micro_batches)
    values = numbers(num_micro_batches, random)
    runs = [micro_batches_of_group(num_micro_batches, num_groups, g) for g in range(num_groups)]
    num_nodes = sum_over_groups(values, runs)
    assert max(num_nodes) <= max(1, 2 * num_micro_batches.bit_length())


@SETTINGS
@given(st.integers(1, 40), st.integers(2, 12), st.randoms(use_true_random=False))
def test_what_is_left_after_losses_gives_the_same_bits_in_whatever_order_it_is_computed(
    num_micro_batches: int, num_groups: int, random: Random
) -> None:
    num_groups = min(num_groups, num_micro_batches)
    values = numbers(num_micro_batches, random)
    done: list[list[int]] = [[] for _ in range(num_groups)]
    while len(done) > 1:
        left = divide_what_is_left(num_micro_batches, done)
        for mine, indices in zip(done, left, strict=True):
            mine += indices[: random.randint(0, len(indices))]
        del done[random.randrange(len(done))]
        left = divide_what_is_left(num_micro_batches, done)
        sum_over_groups(values, [[*mine, *rest] for mine, rest in zip(done, left, strict=True)])


def bitwise(text: str, size: int, num_groups: int, **changes: object) -> object:
    return small_job(
        text,
        partition_size=size,
        training__determinism="bitwise",
        training__global_batch_size=7 * size,
        training__steps=2,
        groups__wanted=num_groups,
        **changes,
    )


# Partition size, workers of a node, how states move, and the numbers of groups compared.
LAYOUTS = [
    (1, 1, "flat", (1, 3, 7)),
    (2, 2, "never", (1, 2, 6)),
    (4, 2, "paper", (1, 3)),
    (4, 2, "node, added there", (1, 2)),
]


@pytest.mark.parametrize(("size", "workers_per_node", "name", "numbers"), LAYOUTS)
def test_the_bits_do_not_depend_on_the_number_of_groups(
    pool: WorkerPool,
    text: str,
    size: int,
    workers_per_node: int,
    name: str,
    numbers: tuple[int, ...],
) -> None:
    digests, relaxed = set(), set()
    for num_groups in numbers:
        spec = bitwise(text, size, num_groups)
        layout = (num_groups, size, workers_per_node, STRATEGIES[name])
        results = pool.run(train_over_groups, spec, *layout)
        ours = [result for result in results if result is not None]
        for rank in range(size):
            assert len({result["digest"] for result in ours[rank::size]}) == 1
        digests.add(tuple(result["digest"] for result in ours[:size]))
        if name == "paper":
            loose = small_job(
                text,
                partition_size=size,
                training__global_batch_size=7 * size,
                training__steps=2,
                groups__wanted=num_groups,
            )
            relaxed.add(pool.run(train_over_groups, loose, *layout)[0]["digest"])
    assert len(digests) == 1
    assert len(relaxed) != 1  # it is the option that makes the difference
    gold = train_in_one_process(spec)
    assert ours[0]["losses"] == pytest.approx(gold.losses, rel=1e-5)
    assert relative_difference(ours[0]["parameters"], gold.parameters) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "fp64"])
def test_every_precision_is_bitwise(pool: WorkerPool, text: str, precision: str) -> None:
    digests = {
        pool.run(
            train_over_groups, bitwise(text, 2, number, training__precision=precision), number, 2
        )[0]["digest"]
        for number in (1, 2, 4)
    }
    assert len(digests) == 1


def test_dropout_and_adamw_are_bitwise(pool: WorkerPool, text: str) -> None:
    changes = {
        "model__dropout": 0.2,
        "training__optimizer": {"kind": "adamw", "learning_rate": 1e-3},
    }
    digests = {
        pool.run(train_over_groups, bitwise(text, 2, number, **changes), number, 2)[0]["digest"]
        for number in (1, 3, 5)
    }
    assert len(digests) == 1
