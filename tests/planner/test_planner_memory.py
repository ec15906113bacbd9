"""Predicted memory against sums made by hand, and against what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import BY_NODE, HIERARCHICAL, MODEL, layout, workload

from mics_core.planner.footprint import memory_of
from mics_core.planner.memory import STAGING_SLOT_BYTES, Optimizer
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Memory
from mics_core.planner.shape import shape_of_transformer
from mics_core.planner.strategy import Strategy

pytestmark = pytest.mark.pure


def test_memory_by_part() -> None:
    # Largest in backward of the last block: two blocks and the root are gathered, both gradients
    # are whole, and the block's goes out; what comes in is added to the shard's sum.
    span = layout(4).span(2)
    found = memory_of(MODEL, layout(4, 2), workload(16), span)
    assert found.model_states == 4400 * 16 / 4
    assert found.gathered == (400 + 2 * 1000) * 4
    assert found.gradients == (400 + 1000) * 4 + 1000 * 4 + 1000 * 4 / 4
    assert found.activations == (4 * 100 + 50) * 4
    assert found.buckets == 2 * 1000 * 4 / 4
    assert found.copies == found.update == 0
    again = memory_of(MODEL, layout(4, is_checkpointed=True), workload(16), span)
    assert again.activations == (4 * 20 + 100 + 50) * 4


def test_memory_of_stages() -> None:
    span = layout(4).span(2)
    flat = memory_of(MODEL, layout(4), workload(16), span)
    staged = memory_of(MODEL, layout(4, strategy=HIERARCHICAL), workload(16), span)
    # Half of a block on its way in and out: between nodes there are columns of it.
    assert staged.gathered - flat.gathered == 1000 * 4 / 2
    assert staged.gradients - flat.gradients == 1000 * 4 / 2
    kept = memory_of(MODEL, layout(4, strategy=BY_NODE), workload(16), span)
    assert kept.gathered - flat.gathered == 4400 * 4 / 2
    # The sums of all units, and what is to be added to one of them, half a block for a quarter.
    assert kept.gradients - flat.gradients == 4400 * 4 / 2 + 1000 * 4 / 4
    whole = replace(HIERARCHICAL, reshard="never")
    never = memory_of(MODEL, layout(4, strategy=whole), workload(16), span)
    # The buffers of gathers are gone when there are gradients, which are larger.
    assert never.gathered == 4400 * 4
    assert never.gradients == staged.gradients


def test_one_worker_holds_the_gradients_of_what_is_outside_the_blocks() -> None:
    # Those of a tied weight wait for each other: the head's, the embedding's, and their sum.
    span = layout(1).span(2)
    alone = memory_of(MODEL, layout(1), workload(16), span)
    assert alone.gathered == alone.buckets == 0
    assert (alone.gradients, alone.activations) == (3 * 400 * 4, 0)
    longer = memory_of(MODEL, layout(1, micro_batch_size=2), workload(16), span)
    assert (longer.gradients, longer.activations) == (400 * 4, 2 * 450 * 4)


def test_one_worker_in_bf16_gathers_and_reduces_to_itself() -> None:
    in_bf16 = workload(16, precision="bf16")
    found = memory_of(MODEL, layout(1), in_bf16, layout(1).span(2))
    assert found.model_states == 4400 * 16
    # One block, nothing ahead; its gradient in fp32, a copy that is divided, and the sum so far.
    assert found.gathered == (400 + 1000) * 2
    assert found.gradients == (400 + 1000) * 2 + 3 * 1000 * 4


def test_shards_are_cast_before_they_are_gathered() -> None:
    in_bf16 = workload(16, precision="bf16")
    found = memory_of(MODEL, layout(4), in_bf16, layout(4).span(2))
    assert found.gathered == (400 + 2 * 1000) * 2 + 1000 / 4 * 2


@pytest.mark.parametrize(("precision", "num_bytes"), [("fp32", 12), ("bf16", 12), ("fp64", 24)])
def test_the_loss_needs_three_copies_of_the_logits(precision: Any, num_bytes: int) -> None:
    # 10 tokens of 5000 words: far more than anything that comes later.
    wide = replace(MODEL, logits=50_000)
    compute = {"fp32": 4, "bf16": 2, "fp64": 8}[precision]
    asked = workload(16, precision=precision)
    for size in (1, 4):
        found = memory_of(wide, layout(size), asked, layout(size).span(2))
        assert found.activations == 450 * compute + 50_000 * num_bytes
    # Blocks are computed again when the logits are gone.
    again = layout(1, is_checkpointed=True)
    found = memory_of(wide, again, asked, again.span(2))
    assert found.activations == (4 * 20 + 50) * compute + 50_000 * num_bytes


def test_the_heads_gradient_and_that_of_the_logits_are_held_at_once() -> None:
    # 50 logits a sample need 600 bytes for the loss, then 200 beside 1600 of the head's gradient.
    few, twice = replace(MODEL, logits=50), layout(1, micro_batch_size=2)
    found = memory_of(few, twice, workload(16), twice.span(2))
    assert (found.gradients, found.activations) == (1600, 2 * (450 * 4 + 50 * 4))


def test_on_cpus_copies_of_the_states_are_held_too() -> None:
    def copies(size: int, groups: int = 1, backend: Any = "gloo", **changes: Any) -> float:
        found = layout(size, groups)
        return memory_of(MODEL, found, workload(**changes), found.span(2), backend).copies

    # Parameter and two moments; of SGD the parameter alone.
    assert copies(2) == 0
    assert copies(2, writes_checkpoints=True) == 4400 * 12 / 2
    assert copies(2, writes_checkpoints=True, optimizer="sgd") == 4400 * 4 / 2
    assert copies(2, writes_checkpoints=True, is_elastic=True) == 2 * 4400 * 12 / 2
    # There may be two groups for a while, which have half of it each.
    assert copies(2, 4, is_elastic=True, minimum_groups=2) == 4400 * 12 / 4
    assert copies(2, 1, is_elastic=True, minimum_groups=2) == 4400 * 12 / 2
    assert copies(2, backend="nccl", writes_checkpoints=True, is_elastic=True) == 0
    # A gradient that crosses is set aside, unless the sums of micro-batches are kept in any case.
    assert copies(2, 2, reuses_gradients=True) == 4400 * 4 / 2
    assert copies(2, 1, reuses_gradients=True) == 0
    assert copies(2, 2, reuses_gradients=True, determinism="bitwise") == 0


def test_one_order_of_additions_keeps_sums() -> None:
    def memory(batch: int, groups: int = 1, **changes: Any) -> Memory:
        found = layout(1, groups)
        asked = workload(batch, determinism="bitwise", **changes)
        return memory_of(MODEL, found, asked, found.span(2))

    plain = memory_of(MODEL, layout(1), workload(8), layout(1).span(2))
    # Of eight micro-batches sums of four, two and one wait for the last. Its own comes on top when
    # the passes have let go of 4800 bytes.
    one = memory(8)
    assert one.gradients - plain.gradients == 3 * 17600
    assert one.update == 17600 - 4800
    # Two groups of four exchange the sum of all their four, which is sent and received whole.
    two = memory(8, 2)
    assert two.gradients - plain.gradients == 2 * 17600
    assert two.update == 17600 + 2 * 17600 - 4800
    assert two.buckets == 0
    # Three groups take 3, 3 and 2 micro-batches; the second has the nodes 3 and 4 to 5.
    assert memory(8, 3).update == 17600 + 2 * 2 * 17600 - 4800
    # SGD makes a gradient more in each step.
    assert memory(8, optimizer="sgd").update == 2 * 17600 - 4800


def test_sgd_makes_a_gradient_more_where_the_passes_leave_no_room() -> None:
    def memory(size: int, optimizer: Optimizer, *, offloaded: bool = False) -> Memory:
        asked = workload(optimizer=optimizer, offload_optimizer=offloaded)
        return memory_of(MODEL, layout(size), asked, layout(size).span(2))

    alone = memory(1, "sgd")
    assert alone.update == 4400 * 4 - alone.gradients - alone.activations
    assert memory(4, "sgd").update == memory(1, "sgd", offloaded=True).update == 0
    assert memory(1, "adamw").update == 0


def test_on_cpus_two_scatters_and_what_others_are_shown_or_one_receives_are_held_at_once() -> None:
    inside = layout(2).span(2)
    found = memory_of(MODEL, layout(2), workload(), inside, "gloo")
    # Two slots of the half of a block that gathers show, and of a block's gradient.
    assert found.gradients == (400 + 1000) * 4 + 2 * 1000 * 4 + 2 * (500 + 1000) * 4
    alone_on_nodes = layout(2).span(1)
    found = memory_of(MODEL, layout(2), workload(), alone_on_nodes, "gloo")
    assert found.gradients == (400 + 1000) * 4 + 3 * 1000 * 4
    # Around a ring over nodes two parts of the block come in turn.
    over_nodes = layout(4).span(2)
    found = memory_of(MODEL, layout(4), workload(), over_nodes, "gloo")
    assert found.gradients == (400 + 1000) * 4 + (2 + 2 / 4) * 1000 * 4


def test_memory_is_what_was_measured_to_a_twentieth() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    rows = json.loads((results / "memory.json").read_text(encoding="utf-8"))
    model = json.loads((results / "memory.meta.json").read_text(encoding="utf-8"))["model"]
    shape = shape_of_transformer(
        TransformerSizes(**model, intermediate_size=4 * model["hidden_size"], sequence_length=64)
    )
    assert {row["partition_size"] for row in rows} == {1, 2, 4}
    for row in rows:
        assert shape.parameters == row["num_parameters"]
        found = layout(row["partition_size"])
        asked = workload(row["partition_size"], bucket_bytes=4 << 20)
        modelled = memory_of(shape, found, asked, found.span(4), "gloo")
        # What a worker has read of its neighbours' slots counts in its resident memory too.
        part = row["largest_unit_bytes"] // row["partition_size"]
        read = (row["partition_size"] - 1) * 2 * min(STAGING_SLOT_BYTES, part)
        measured = max(row["peak_building_bytes"], row["peak_training_bytes"] - read)
        assert 0.95 * measured <= modelled.total <= 1.10 * measured, row


def test_offloaded_states_leave_the_gradient_and_what_is_fetched() -> None:
    offloaded = workload(16, offload_optimizer=True, precision="bf16")
    found = memory_of(MODEL, layout(4), offloaded, layout(4).span(2))
    assert found.model_states == 4400 * 4 / 4
    # A block's shard as it comes, and in bf16 as it is gathered.
    assert found.gathered == (400 + 2 * 1000) * 2 + 1000 / 4 * (4 + 2)


@given(st.sampled_from([2, 4, 6]), st.sampled_from([Strategy(), Strategy(reshard="never")]))
def test_memory_falls_with_the_partition_size(size: int, strategy: Strategy) -> None:
    def total(partition_size: int) -> float:
        found = layout(partition_size, strategy=strategy)
        return memory_of(MODEL, found, workload(), found.span(2)).total

    assert total(size + 2) < total(size)
