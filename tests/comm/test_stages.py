"""All-gather and reduce-scatter in stages against the flat ones, over nodes of several workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.comm.nodes import NodeGrid, node_grid
from tests.comm.worlds import (
    count_memory,
    gather_both_ways,
    receive_by_route,
    scatter_every_way,
)
from tests.engine.worker_pool import WorkerPool, running_pool

LAYOUTS = [(4, 2), (8, 2), (8, 4)]  # p and k: 2 × 2, 4 × 2, 2 × 4
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(8) as pool:
        yield pool


layouts = st.sampled_from([*LAYOUTS, (6, 2), (6, 3)])  # 3 × 2, 2 × 3
sizes = st.one_of(st.integers(1, 9), st.integers(1, 20_000))


@settings(max_examples=40, deadline=None)
@given(
    layout=layouts, num_elements=sizes, dtype=st.sampled_from(DTYPES), shares_memory=st.booleans()
)
def test_a_gather_in_stages_is_the_flat_one_to_the_bit(
    pool: WorkerPool,
    layout: tuple[int, int],
    num_elements: int,
    dtype: torch.dtype,
    shares_memory: bool,
) -> None:
    size, workers_per_node = layout
    results = pool.run(gather_both_ways, (*layout, shares_memory), num_elements, dtype)
    for result in results[:size]:
        assert result.staged == result.flat == results[0].flat
        # The only buffer beside input and output holds 1/k of the unit.
        assert result.column_elements == num_elements * size // workers_per_node


@settings(max_examples=25, deadline=None)
@given(
    layout=st.one_of(layouts, st.sampled_from([(2, 2), (8, 8), (5, 1)])),
    num_elements=sizes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_scatter_sums_over_all_workers_by_every_route(
    pool: WorkerPool, layout: tuple[int, int], num_elements: int, dtype: torch.dtype
) -> None:
    size, workers_per_node = layout
    shared, sent = (
        pool.run(scatter_every_way, (*layout, shares), num_elements, dtype)[:size]
        for shares in (True, False)
    )
    bound = 1e-6 if dtype == torch.float32 else 1e-14
    for found in shared:
        assert len(found) == (5 if 1 < workers_per_node < size else 2)
        assert max(error for error, _ in found.values()) < bound, found
    # The same sums in the same order.
    assert shared == sent


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize(("size", "workers_per_node"), LAYOUTS)
def test_every_copy_of_a_stage_is_accounted_for(
    pool: WorkerPool, size: int, workers_per_node: int, shares_memory: bool
) -> None:
    num_elements = 3000
    seen = pool.run(count_memory, (size, workers_per_node, shares_memory), num_elements)[:size]
    unit = 4 * size * num_elements
    column = unit // workers_per_node
    # In messages a worker copies its own column into place. In shared memory it puts its column
    # into a slot, and copies all columns out of theirs; a scatter puts the unit into a slot.
    expected = {
        "flat gather": (0, 0),
        "gather": (column, column + unit * shares_memory),
        "flat scatter": (0, 0),
        "scatter": (0, unit * shares_memory),
    }
    assert seen == [expected] * size


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize(("size", "workers_per_node"), [*LAYOUTS, (8, 8), (8, 1)])
def test_no_route_sends_more_than_its_ring_out_of_a_node_or_to_a_worker(
    pool: WorkerPool, size: int, workers_per_node: int, shares_memory: bool
) -> None:
    num_elements = 50_000
    layout = (size, workers_per_node, shares_memory)
    seen = pool.run(receive_by_route, layout, num_elements)[:size]
    unit_bytes = 4 * size * num_elements
    ring = (size - 1) / size * unit_bytes
    between = (size - workers_per_node) / size * unit_bytes
    inside = (workers_per_node - 1) / workers_per_node * unit_bytes * (not shares_memory)
    across = (size // workers_per_node - 1) / size * unit_bytes
    # What leaves a node, and what each worker receives, from its own node or another.
    most = {"flat gather": (ring, ring), "flat scatter": (ring, ring)}
    if 1 < workers_per_node < size:
        most |= {
            "staged gather, between nodes": (between, across),
            "staged gather, inside": (0.0, inside),
            "staged scatter, inside": (0.0, inside),
            "staged scatter, between nodes": (between, across),
        }
    if workers_per_node == size:
        most = {
            route: (0.0, received * (not shares_memory)) for route, (_, received) in most.items()
        }
    assert most.keys() == seen[0].keys()
    # Whose an end is; one port may serve several processes, towards different peers.
    owners = {
        (end.here, end.there): rank
        for rank, routes in enumerate(seen)
        for end in routes["flat scatter"]  # the last, so all are connected
    }
    for route, (expected, to_each) in most.items():
        out_of_node: Counter[int] = Counter()
        received: Counter[int] = Counter()
        for rank, routes in enumerate(seen):
            for end in routes[route]:
                sender = owners.get((end.there, end.here))  # others are the world's store
                if sender is None:
                    continue
                received[rank] += end.received_bytes
                if sender // workers_per_node != rank // workers_per_node:
                    out_of_node[sender // workers_per_node] += end.received_bytes
        # Headers and the barrier between the two looks are a few hundred bytes a message.
        slack = 0.02 * unit_bytes
        for node in range(size // workers_per_node):
            assert out_of_node[node] == pytest.approx(expected, abs=slack), (route, out_of_node)
        for rank in range(size):
            assert received[rank] == pytest.approx(to_each, abs=slack), (route, received)


@pytest.mark.parametrize(
    ("nodes", "grid"),
    [
        (["a"], NodeGrid(1, 1)),
        (["a", "a"], NodeGrid(1, 2)),
        (["a", "a", "b", "b"], NodeGrid(2, 2)),
        (["a", "b"], NodeGrid(2, 1)),
        (["a", "a", "b"], NodeGrid(3, 1)),
        (["a", "b", "a", "b"], NodeGrid(4, 1)),
    ],
)
def test_workers_stand_in_a_grid_if_their_nodes_are_equal_and_together(
    nodes: list[str], grid: NodeGrid
) -> None:
    assert node_grid(nodes) == grid
    assert grid.num_workers == len(nodes)


def test_rows_and_columns_of_the_grid_meet_in_one_worker() -> None:
    grid = NodeGrid(3, 4)
    for node in range(3):
        for local_rank in range(4):
            assert set(grid.row(node)) & set(grid.column(local_rank)) == {node * 4 + local_rank}
