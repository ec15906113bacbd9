"""The choice of the partition size: the smallest that fits, and a reason for every other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mics_core.errors import BrokenRule
from mics_core.planner.layout import ClusterShape, NodeShape, check_partition_size
from mics_core.planner.memory import (
    Optimizer,
    Precision,
    activation_bytes,
    model_state_bytes_per_parameter,
)
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.partition import NoPartitionFits, PartitionChoice, choose_partition_size

pytestmark = pytest.mark.pure

GIB = 2**30


def cluster(num_nodes: int, workers_per_node: int) -> ClusterShape:
    nodes = (NodeShape(f"node-{number}", workers_per_node) for number in range(num_nodes))
    return ClusterShape(tuple(nodes))


def divides(batch: int) -> Callable[[int], BrokenRule | None]:
    def problem(size: int) -> BrokenRule | None:
        return BrokenRule(f"{size} does not divide the batch of {batch}.") if batch % size else None

    return problem


def choose(
    model_state_bytes: int, shape: ClusterShape, batch: int = 64, memory_bytes: int = 100
) -> PartitionChoice | NoPartitionFits:
    return choose_partition_size(
        model_state_bytes=model_state_bytes,
        unit_bytes=lambda _size: 10,
        activation_bytes=20,
        worker_memory_bytes=memory_bytes,
        cluster=shape,
        batch_problem=divides(batch),
    )


@pytest.mark.long
def test_the_choice_is_the_smallest_that_fits_on_every_small_cluster() -> None:
    for workers_per_node in (1, 2, 4, 6, 8):
        for num_nodes in range(1, 64 // workers_per_node + 1):
            shape = cluster(num_nodes, workers_per_node)
            for model_state_bytes in (1, 60, 61, 240, 700, 3840, 3841):
                for batch in (24, 64):
                    fitting = [
                        size
                        for size in range(1, shape.num_workers + 1)
                        if -(-model_state_bytes // size) + 30 <= 90
                        and batch % size == 0
                        and check_partition_size(size, shape) is None
                    ]
                    choice = choose(model_state_bytes, shape, batch)
                    if fitting:
                        assert isinstance(choice, PartitionChoice)
                        assert choice.partition_size == fitting[0]
                        tried = [entry.partition_size for entry in choice.rejected]
                        assert tried == list(range(1, fitting[0]))
                    else:
                        assert isinstance(choice, NoPartitionFits)
                        assert len(choice.rejected) == shape.num_workers
                    assert all(entry.reason.endswith(".") for entry in choice.rejected)


def test_every_size_carries_its_reason() -> None:
    choice = choose(240, cluster(2, 6), batch=24)
    assert isinstance(choice, PartitionChoice)
    assert choice.partition_size == 4
    assert choice.reason == (
        "4 is the smallest partition size that fits: it needs 90 bytes a worker"
        " (240 bytes of model states / 4 + 10 bytes of gathered units"
        " + 20 bytes of activations) of 90 bytes usable."
    )
    assert choice.rejected[2].reason == (
        "3 needs 110 bytes a worker (240 bytes of model states / 3 + 10 bytes of gathered units"
        " + 20 bytes of activations), but 90 bytes is usable."
    )


def test_sizes_are_rejected_for_the_batch_and_for_the_cluster() -> None:
    choice = choose(300, cluster(2, 6), batch=12)
    assert isinstance(choice, PartitionChoice)
    assert choice.partition_size == 6
    assert choice.rejected[4].reason == "5 does not divide the batch of 12."
    choice = choose(420, cluster(2, 6), batch=12)
    assert isinstance(choice, PartitionChoice)
    assert choice.partition_size == 12
    assert choice.rejected[6].reason == (
        "partition_size 7 on nodes of 2 × 6 workers is refused:"
        " a partition group fits on one node or takes whole nodes of equal size."
    )


def test_too_little_memory_names_what_each_worker_would_need() -> None:
    outcome = choose(96 * GIB, cluster(1, 8), memory_bytes=10 * GIB)
    assert isinstance(outcome, NoPartitionFits)
    assert outcome.needed_bytes == 12 * GIB + 30
    assert "9 GiB usable" in outcome.problem.value
    assert "the largest size that cluster and batch allow, 8, needs 12 GiB" in outcome.problem.rule
    assert "at least 13.3 GiB" in outcome.problem.remedy
    assert "activation_checkpointing" in outcome.problem.remedy


def test_memory_is_named_even_if_the_batch_suits_no_size() -> None:
    outcome = choose_partition_size(
        model_state_bytes=1000,
        unit_bytes=lambda _size: 10,
        activation_bytes=20,
        worker_memory_bytes=100,
        cluster=cluster(1, 4),
        batch_problem=lambda size: BrokenRule(f"{size} is no size."),
    )
    assert isinstance(outcome, NoPartitionFits)
    assert "the largest size that the cluster allows, 4, needs 280 bytes" in outcome.problem.rule


def test_a_batch_that_suits_no_fitting_size_is_named() -> None:
    outcome = choose(240, cluster(1, 8), batch=3)
    assert isinstance(outcome, NoPartitionFits)
    assert outcome.problem.rule == (
        "memory and cluster allow 4, but 4 does not divide the batch of 3."
    )
    assert outcome.needed_bytes == 110
    assert outcome.problem.remedy == (
        "Change the batch to suit it, or give each worker at least 123 bytes."
    )


def test_an_unknown_cluster_bounds_nothing_but_memory_and_batch() -> None:
    choice = choose(60 * 100, ClusterShape(), batch=128)
    assert isinstance(choice, PartitionChoice)
    assert choice.partition_size == 128


@pytest.mark.parametrize(
    ("precision", "optimizer", "has_momentum", "num_bytes"),
    [
        ("fp32", "adamw", False, 16),
        ("bf16", "adamw", False, 16),
        ("fp64", "adamw", False, 32),
        ("fp32", "sgd", False, 8),
        ("fp32", "sgd", True, 12),
    ],
)
def test_model_states_are_parameter_gradient_and_moments(
    precision: Precision, optimizer: Optimizer, has_momentum: bool, num_bytes: int
) -> None:
    measured = model_state_bytes_per_parameter(precision, optimizer, has_momentum=has_momentum)
    assert measured == num_bytes


def test_activations_grow_with_tokens_and_shrink_with_checkpointing() -> None:
    sizes = TransformerSizes("gpt2", 1024, 24, 16, 4096, 50257, 1024)
    # Korthikanti et al. give 34 bytes per token, layer and unit of width in half precision, of
    # which two are dropout masks; GPT-2's unfused GELU keeps three steps of width 4096 more. A
    # logit is three numbers in fp32.
    blocks, logits = 24 * (32 + 2 * 3 * 4) * 1024, 12 * 50257
    one = activation_bytes(sizes, micro_batch_size=1, precision="bf16")
    assert one == 1024 * (blocks + logits)
    assert activation_bytes(sizes, micro_batch_size=4, precision="bf16") == 4 * one
    in_fp32 = activation_bytes(sizes, micro_batch_size=1, precision="fp32")
    assert in_fp32 == 1024 * (2 * blocks + logits)
    kept = activation_bytes(sizes, micro_batch_size=1, precision="bf16", is_checkpointed=True)
    # Of each block its input; no block is computed again while there are logits.
    assert kept == 1024 * (24 * 2 * 1024 + logits)


def test_a_full_stop_in_a_value_does_not_end_the_rule() -> None:
    outcome = choose_partition_size(
        model_state_bytes=60,
        unit_bytes=lambda _size: 10,
        activation_bytes=20,
        worker_memory_bytes=100,
        cluster=cluster(1, 1),
        batch_problem=lambda _size: BrokenRule("'a. b' is no batch.", "Choose another."),
    )
    assert isinstance(outcome, NoPartitionFits)
    assert outcome.problem.rule == "memory and cluster allow 1, but 'a. b' is no batch."
    assert outcome.problem.remedy == "Choose another."
