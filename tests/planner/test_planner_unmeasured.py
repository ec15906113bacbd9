"""The choice by memory alone: the smallest group, then kept activations, then large batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from planning import MODEL, workload

from mics_core.errors import BrokenRule
from mics_core.planner.candidates import Pins
from mics_core.planner.collectives import Span
from mics_core.planner.layout import ClusterShape, LayoutProblem, NodeShape
from mics_core.planner.shape import ModelShape
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.planner.unmeasured import MemoryChoice, choose_by_memory, pinned_strategy

pytestmark = pytest.mark.pure

NODES = ClusterShape(tuple(NodeShape(f"node-{index}", 2) for index in range(4)))


def choose(
    memory_bytes: int, batch: int = 64, model: ModelShape = MODEL, **pins: Any
) -> MemoryChoice | LayoutProblem:
    def batch_problem(size: int, micro_batch: int) -> BrokenRule | None:
        suits = batch % (size * micro_batch) == 0
        return None if suits else BrokenRule(f"{batch} does not divide.", "Take another.")

    fixed = {"micro_batch_size": 1, "activation_checkpointing": False} | pins
    return choose_by_memory(
        model, workload(batch), Pins(**fixed), memory_bytes, NODES, batch_problem
    )


def chosen(memory_bytes: int, batch: int = 64, **pins: Any) -> MemoryChoice:
    found = choose(memory_bytes, batch, **pins)
    assert isinstance(found, MemoryChoice), found
    return found


def test_the_smallest_size_that_fits_is_taken() -> None:
    # 70400 bytes of states and 4800 of the head's gradient in three parts, of nine tenths.
    assert chosen(84_000).layout.partition_size == 1
    assert chosen(83_000).layout.partition_size == 2
    assert chosen(60_000).layout.partition_size == 4
    assert "smallest partition size that fits" in chosen(60_000).reason


def test_activations_are_kept_only_if_they_fit() -> None:
    # 70400 bytes of states; 32200 of activations and 1600 of a gradient, or fewer computed again.
    wide = replace(MODEL, block=replace(MODEL.block, activations=2000))
    pins = {"model": wide, "activation_checkpointing": "auto"}
    assert not chosen(116_000, **pins).layout.is_checkpointed
    tight = chosen(113_000, **pins)
    assert tight.layout.partition_size == 1
    assert tight.layout.is_checkpointed
    assert "with checkpointing a worker needs" in tight.reason


def test_the_largest_micro_batch_that_fits_is_taken() -> None:
    found = chosen(100_000, micro_batch_size="auto")
    assert found.layout.partition_size == 1
    assert found.layout.micro_batch_size == 8  # 70400 + 16 · 1800 bytes exceed 90000
    assert found.reason.endswith(
        "with micro-batches of 8 a worker needs 84.4 KiB of 87.9 KiB usable."
    )
    assert chosen(10**9, micro_batch_size="auto").layout.micro_batch_size == 32
    assert chosen(10**9, batch=6, micro_batch_size="auto").layout.micro_batch_size == 2


def test_a_fixed_size_is_kept_and_checked() -> None:
    assert chosen(10**9, partition_size=4, micro_batch_size="auto").layout.partition_size == 4
    for size, rule in ((3, "whole nodes"), (4, "it needs"), (8, "does not divide")):
        found = choose(30_000, batch=4, partition_size=size, micro_batch_size="auto")
        assert isinstance(found, LayoutProblem)
        assert rule in found.rule
        assert found.remedy


def test_the_strategy_is_the_papers_unless_the_job_fixes_it() -> None:
    for span in (Span(1, 1), Span(1, 4), Span(2, 4), Span(4, 1)):
        assert pinned_strategy(Pins(), span) == default_strategy(span.size, span.workers)
    two = Span(2, 4)
    assert pinned_strategy(Pins(hierarchical="never"), two) == Strategy()
    assert pinned_strategy(Pins(reshard="never"), Span(1, 4)) == Strategy(reshard="never")
    by_node = pinned_strategy(Pins(reshard="node", accumulation="node"), two)
    assert (by_node.reshard, by_node.accumulation) == ("node", "node")
    assert by_node.gather_root == "hierarchical"


def test_what_is_kept_by_node_needs_a_group_over_nodes() -> None:
    found = choose(10**9, partition_size=2, reshard="node")
    assert isinstance(found, LayoutProblem)
    assert "engine.reshard 'node'" in found.rule
    assert chosen(10**9, reshard="node").layout.partition_size == 4
