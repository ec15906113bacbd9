"""Layouts on all small clusters: what fits, where it stands, and who belongs to which group."""

from __future__ import annotations

from itertools import chain, combinations_with_replacement

import pytest

from mics_core.planner.layout import (
    ClusterShape,
    NodeShape,
    PlacementShape,
    allowed_partition_sizes,
    check_partition_size,
    claimed_workers,
    num_groups_held,
    partition_group_of,
    placement_of,
    rank_in_partition_group,
    replication_group,
)

pytestmark = pytest.mark.pure


def cluster(*workers: int) -> ClusterShape:
    return ClusterShape(tuple(NodeShape(f"node-{i}", k) for i, k in enumerate(workers)))


@pytest.mark.long
def test_every_size_on_every_even_cluster_follows_the_rule() -> None:
    for workers_per_node in (1, 3, 4, 8, 16, 64):
        for num_nodes in range(1, 64 // workers_per_node + 1):
            shape = cluster(*[workers_per_node] * num_nodes)
            for size in range(1, 66):
                fits_node = size <= workers_per_node
                fits_nodes = size % workers_per_node == 0 and size <= shape.num_workers
                problem = check_partition_size(size, shape)
                assert (problem is None) == (fits_node or fits_nodes), (size, shape)
                expected = PlacementShape(size // workers_per_node, workers_per_node)
                if fits_node:
                    expected = PlacementShape(1, size)
                assert placement_of(size, shape) == (expected if problem is None else None)


def test_uneven_clusters_hold_what_one_node_or_equal_nodes_hold() -> None:
    for num_nodes in range(1, 5):
        for workers in combinations_with_replacement(range(6), num_nodes):
            shape = cluster(*workers)
            if not shape.num_workers:
                continue
            expected = {
                size
                for size in range(1, shape.num_workers + 1)
                if size <= max(workers)
                or any(size in range(k, k * workers.count(k) + 1, k) for k in workers if k)
            }
            assert set(allowed_partition_sizes(shape)) == expected


def test_groups_of_one_size_are_all_placed_alike() -> None:
    assert num_groups_held(3, cluster(8, 8)) == 4
    assert num_groups_held(16, cluster(8, 8, 8)) == 1
    # One node holds a group of 8, so no other is put together from nodes of 4.
    assert num_groups_held(8, cluster(8, 4, 4)) == 1
    assert num_groups_held(4, cluster(8, 4, 4)) == 4
    assert num_groups_held(12, cluster(8, 4, 4, 4)) == 1
    assert num_groups_held(16, cluster(4, 4, 4, 4, 8)) == 1
    assert num_groups_held(7, cluster(4, 4)) == 0
    assert num_groups_held(2, ClusterShape()) == 0


def test_a_group_claims_the_workers_that_it_leaves_to_nobody() -> None:
    claimed = {size: claimed_workers(size, cluster(8, 8)) for size in (*range(1, 9), 16)}
    assert claimed == {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8, 16: 16}
    assert claimed_workers(3, cluster(8, 4, 4)) == 4
    assert claimed_workers(5, cluster(8, 4, 4)) == 8
    assert claimed_workers(12, cluster(8, 4, 4, 4)) == 12
    assert claimed_workers(3, ClusterShape()) == 3


def test_a_placement_takes_nodes_that_are_there() -> None:
    for workers in combinations_with_replacement((1, 2, 4, 8), 5):
        shape = cluster(*workers)
        for size in allowed_partition_sizes(shape):
            placement = placement_of(size, shape)
            assert placement is not None
            assert placement.num_nodes * placement.workers_per_node == size
            holding = [k for k in workers if k >= placement.workers_per_node]
            assert len(holding) >= placement.num_nodes


def test_the_fewest_nodes_are_taken() -> None:
    assert placement_of(16, cluster(4, 4, 4, 4, 8, 8)) == PlacementShape(2, 8)
    assert placement_of(12, cluster(4, 4, 4, 8, 8)) == PlacementShape(3, 4)


@pytest.mark.parametrize("shape", [ClusterShape(), cluster(0, 0)])
def test_a_cluster_without_workers_cannot_be_checked(shape: ClusterShape) -> None:
    assert check_partition_size(1000, shape) is None
    assert placement_of(1000, shape) == PlacementShape(1, 1000)
    assert allowed_partition_sizes(shape) == ()


@pytest.mark.parametrize(
    ("size", "workers", "value", "remedy"),
    [
        (12, (8, 8), "partition_size 12 on nodes of 2 × 8 workers", "Choose 8 or 16, leave"),
        (32, (8, 8, 0), "partition_size 32 on nodes of 2 × 8 workers", "Choose 16, leave"),
        (9, (8, 4, 4), "9 on nodes of 1 × 8 and 2 × 4 workers", "Choose 8, leave it at 'auto'"),
    ],
)
def test_a_problem_names_the_cluster_and_the_nearest_sizes_that_fit(
    size: int, workers: tuple[int, ...], value: str, remedy: str
) -> None:
    problem = check_partition_size(size, cluster(*workers))
    assert problem is not None
    assert value in problem.value
    assert problem.rule == (
        "a partition group fits on one node or takes whole nodes of equal size."
    )
    assert remedy in problem.remedy
    assert str(problem) == f"{problem.value} is refused: {problem.rule} {problem.remedy}"
    assert problem.as_problem().field == "partition_size"
    assert str(problem.as_problem()).endswith(str(problem))


@pytest.mark.parametrize("size", [0, -1])
def test_a_partition_group_has_at_least_one_worker(size: int) -> None:
    problem = check_partition_size(size, cluster(8))
    assert problem is not None
    assert "at least one worker" in problem.rule


def test_partition_and_replication_groups_cross_in_exactly_one_worker() -> None:
    for partition_size in range(1, 65):
        for num_groups in range(1, 64 // partition_size + 1):
            workers = range(partition_size * num_groups)
            by_rank = [
                replication_group(rank, num_groups, partition_size)
                for rank in range(partition_size)
            ]
            assert sorted(chain.from_iterable(by_rank)) == list(workers)
            for worker in workers:
                group = partition_group_of(worker, partition_size)
                rank = rank_in_partition_group(worker, partition_size)
                assert group * partition_size + rank == worker
                assert by_rank[rank][group] == worker


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_partition_group_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="not one of the group's 4 workers"):
        replication_group(rank, 2, 4)
