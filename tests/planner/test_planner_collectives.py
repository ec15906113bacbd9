"""Every collective's time and bytes, against sums made by hand and against the known formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import CLUSTER

from mics_core.planner.collectives import (
    NOTHING,
    Span,
    all_gather,
    all_gather_inside,
    all_reduce,
    reduce_scatter,
    reduce_scatter_across,
    reduce_scatter_inside,
)
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.strategy import Route

pytestmark = pytest.mark.pure

NCCL = replace(CLUSTER, backend="nccl")
SIZES = st.floats(1, 1e12)
SPANS = st.builds(Span, st.integers(1, 32), st.integers(1, 16))


def test_one_worker_moves_nothing() -> None:
    alone = Span(1, 1)
    for route in ("flat", "hierarchical"):
        assert all_gather(4000, alone, CLUSTER, route) == NOTHING
        assert reduce_scatter(4000, alone, CLUSTER, route) == NOTHING
    assert all_reduce(4000, alone, 1, CLUSTER) == NOTHING


def test_a_gather_inside_a_node_is_a_ring_that_leaves_nothing_out() -> None:
    # One round of 100 µs, and half of 4000 bytes at 1 MB/s.
    cost = all_gather(4000, Span(1, 2), CLUSTER, "flat")
    assert cost.time_s == pytest.approx(1e-4 + 2e-3)
    assert cost.node_bytes == 0
    assert (cost.worker_bytes, cost.copied_bytes) == (2000, 2 * 4000 + 2 * 2000)
    back = reduce_scatter(4000, Span(1, 2), CLUSTER, "flat")
    assert replace(back, copied_bytes=cost.copied_bytes) == cost
    # In and out, 4000 bytes each; the sum of two halves and adding it, 4000 + 2000 + 6000.
    assert back.copied_bytes == 2 * 4000 + 4000 + 2000 + 6000


@given(SIZES, SPANS, st.sampled_from(["flat", "hierarchical"]))
def test_messages_take_the_processor_on_cpus_alone(
    num_bytes: float, span: Span, route: Route
) -> None:
    cost = reduce_scatter(num_bytes, span, CLUSTER, route)
    assert cost.processor_s(NCCL, "fp32") == 0
    passes = 27 * cost.worker_bytes + cost.copied_bytes
    slow = replace(CLUSTER, memory_bytes_per_s=1e6)
    assert cost.processor_s(slow, "fp32") == pytest.approx(passes / 1e6)


def test_a_flat_gather_over_nodes_runs_at_the_pace_of_the_network() -> None:
    # 2 × 2 workers: 3 rounds of 1 ms and 1000 bytes at 100 kB/s.
    cost = all_gather(4000, Span(2, 2), CLUSTER, "flat")
    assert cost.time_s == pytest.approx(3 * (1e-3 + 1e-2))
    assert cost.node_bytes == pytest.approx(3000)


def test_a_hierarchical_gather_sends_less_out_and_takes_fewer_rounds() -> None:
    # Across: 1 round of 1 ms and 2000 bytes; inside: 2 gathers of 1 round, half of 4000 bytes.
    cost = all_gather(4000, Span(2, 2), CLUSTER, "hierarchical")
    assert cost.time_s == pytest.approx(1e-3 + 2e-2 + 2 * 1e-4 + 2e-3)
    assert cost.node_bytes == pytest.approx(2000)


def test_nccl_runs_the_gathers_inside_as_one_batch() -> None:
    assert all_gather_inside(4000, Span(2, 2), NCCL).time_s == pytest.approx(1e-4 + 2e-3)
    assert all_gather_inside(4000, Span(2, 2), CLUSTER).time_s == pytest.approx(2e-4 + 2e-3)


@pytest.mark.parametrize("cluster", [CLUSTER, NCCL], ids=["gloo", "nccl"])
def test_a_flat_reduce_scatter_over_nodes_is_one_ring_on_every_backend(
    cluster: ClusterProfile,
) -> None:
    ring = reduce_scatter(4000, Span(2, 2), cluster, "flat")
    gather = all_gather(4000, Span(2, 2), cluster, "flat")
    assert replace(ring, copied_bytes=gather.copied_bytes) == gather
    assert ring.node_bytes == pytest.approx(3000)
    # In and out, 4000 bytes each; three rounds and the total read and write 1000 bytes three times.
    assert ring.copied_bytes == 2 * 4000 + 4 * 3 * 1000


def test_the_two_stages_of_a_reduce_scatter_add_up() -> None:
    span = Span(2, 2)
    whole = reduce_scatter(4000, span, CLUSTER, "hierarchical")
    inside = reduce_scatter_inside(4000, span, CLUSTER)
    across = reduce_scatter_across(4000, span, CLUSTER)
    assert whole == inside + across
    assert inside.node_bytes == 0
    assert across.time_s == pytest.approx(1e-3 + 2e-2)


def test_the_second_hop_of_whole_replicas_inside_a_node_and_across() -> None:
    # p = 1, 8 groups on 4 nodes of 2: inside a reduce-scatter and a gather of one round each with
    # 2000 bytes; across 2 · 3 rounds of 1000 bytes a node.
    cost = all_reduce(4000, Span(1, 1), 8, CLUSTER)
    assert cost.time_s == pytest.approx(2 * (1e-4 + 2e-3) + 6 * (1e-3 + 1e-2))
    assert cost.node_bytes == pytest.approx(6000)


def test_the_second_hop_of_uneven_groups_is_one_ring() -> None:
    # p = 1, 3 groups on nodes of 2: 2 · 2 rounds of 4000/3 bytes at the network's pace.
    cost = all_reduce(4000, Span(1, 1), 3, CLUSTER)
    assert cost.time_s == pytest.approx(4 * (1e-3 + 4000 / 3 / 1e5))
    assert cost.node_bytes == pytest.approx(4 * 4000 / 3)


def test_the_second_hop_inside_one_node_leaves_nothing_out() -> None:
    cost = all_reduce(4000, Span(1, 1), 2, CLUSTER)
    assert cost.time_s == pytest.approx(2 * (1e-4 + 2e-3))
    assert cost.node_bytes == 0


def test_the_second_hop_of_groups_over_nodes_shares_the_link_of_a_node() -> None:
    # p = 4 on 2 nodes, 2 groups: each of a node's 2 workers all-reduces its 1000 bytes.
    cost = all_reduce(4000, Span(2, 2), 2, CLUSTER)
    assert cost.time_s == pytest.approx(2 * (1e-3 + 1e-2))
    assert cost.node_bytes == pytest.approx(2000)


@given(SIZES, SPANS)
def test_bytes_out_of_a_node_follow_the_paper(num_bytes: float, span: Span) -> None:
    p, k = span.size, span.workers
    staged = all_gather(num_bytes, span, NCCL, "hierarchical")
    flat = all_gather(num_bytes, span, NCCL, "flat")
    assert staged.node_bytes == pytest.approx((p - k) / p * num_bytes)
    if span.num_nodes > 1:
        assert flat.node_bytes == pytest.approx((p - 1) / p * num_bytes)
        assert staged.node_bytes <= flat.node_bytes * (1 + 1e-9)
    back = reduce_scatter(num_bytes, span, NCCL, "hierarchical")
    assert back.node_bytes == pytest.approx(staged.node_bytes)


@given(SIZES, SPANS, st.integers(1, 64), st.sampled_from([CLUSTER, NCCL]))
def test_no_cost_is_negative_and_none_falls_with_the_bytes(
    num_bytes: float, span: Span, groups: int, cluster: ClusterProfile
) -> None:
    profile = cluster.with_nodes(64, max(2, span.workers))
    for message in (num_bytes, 2 * num_bytes):
        found = [
            all_gather(message, span, profile, "flat"),
            all_gather(message, span, profile, "hierarchical"),
            reduce_scatter(message, span, profile, "flat"),
            reduce_scatter(message, span, profile, "hierarchical"),
            all_reduce(message, span, groups, profile),
        ]
        assert all(cost.time_s >= 0 and cost.node_bytes >= 0 for cost in found)
        if message == num_bytes:
            smaller = found
        else:
            pairs = zip(smaller, found, strict=True)
            assert all(small.time_s <= large.time_s for small, large in pairs)


@given(SIZES, st.integers(1, 8), st.integers(2, 16))
def test_the_second_hop_sends_what_a_ring_over_the_nodes_must(
    num_bytes: float, workers: int, num_nodes: int
) -> None:
    profile = NCCL.with_nodes(num_nodes, 8)
    sharing = 8 // workers
    cost = all_reduce(num_bytes, Span(1, workers), sharing * num_nodes, profile)
    assert cost.node_bytes == pytest.approx(2 * (num_nodes - 1) / num_nodes * num_bytes)


SHARING = replace(CLUSTER, shares_memory=True)


def test_workers_that_share_memory_send_nothing_inside_a_node() -> None:
    cost = all_gather(4000, Span(2, 2), SHARING, "hierarchical")
    # Across: 1 round of 1 ms and 2000 bytes; inside: one gather of 1 round, half of 4000 bytes.
    assert cost.time_s == pytest.approx(1e-3 + 2e-2 + 1e-4 + 2e-3)
    assert cost.worker_bytes == 1000
    # A half put into the slot and read out of the other's, and twice as much for the doors.
    assert cost.handed_bytes == 3 * (2 * 2000 + 2 * 2000)
    back = reduce_scatter_inside(4000, Span(1, 2), SHARING)
    assert (back.worker_bytes, back.handed_bytes) == (0, 3 * 2 * 4000)
    assert back.time_s == pytest.approx(1e-4 + 2e-3)


def test_a_second_hop_in_shared_memory_reads_and_adds_where_gradients_lie() -> None:
    sent = all_reduce(4000, Span(1, 1), 4, CLUSTER)
    read = all_reduce(4000, Span(1, 1), 4, SHARING)
    # Two members on each of two nodes: half of each other's is read and added, and half copied.
    assert read.handed_bytes == 3 * 2000 + 2 * 2000
    assert sent.worker_bytes - read.worker_bytes == pytest.approx(2 * 2000)
    assert (read.time_s, read.node_bytes) == (sent.time_s, sent.node_bytes)
    on_one_node = all_reduce(4000, Span(1, 1), 2, SHARING)
    assert (on_one_node.worker_bytes, on_one_node.handed_bytes) == (0, 5 * 2000)
