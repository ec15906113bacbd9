"""Layouts that torchrun starts: groups on one node or on whole nodes, everything else refused."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from mics_core.engine.torchrun import _check_layout, _nodes
from mics_core.errors import LayoutError
from tests.engine.jobs import small_job
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4


def check(size: int, workers: list[int]) -> int:
    nodes = [f"node-{node}" for node, number in enumerate(workers) for _ in range(number)]
    spec = small_job("text", partition_size=size, training__global_batch_size=len(nodes) * size)
    return _check_layout(spec, nodes)


@pytest.mark.parametrize(
    ("size", "workers"),
    [(1, [3]), (2, [4, 4]), (4, [4, 4]), (8, [4, 4]), (4, [2] * 4), (3, [1] * 6), (2, [4, 2])],
)
def test_groups_on_one_node_or_on_whole_nodes_are_started(size: int, workers: list[int]) -> None:
    assert check(size, workers) == size


@pytest.mark.parametrize(
    ("size", "workers", "taken"),
    [
        (6, [4, 4, 4], "ranks 0 to 5 take 4 of 4, 2 of 4"),
        (3, [4, 4, 4], "ranks 3 to 5 take 1 of 4, 2 of 4"),
        (6, [2, 4], "ranks 0 to 5 take 2 of 2, 4 of 4"),
        (4, [2, 4, 2], "ranks 0 to 3 take 2 of 2, 2 of 4"),
    ],
)
def test_a_group_over_parts_of_nodes_is_refused_with_the_remedy(
    size: int, workers: list[int], taken: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        check(size, workers)
    text = str(caught.value)
    assert text.startswith(f"partition_size: {size} is refused: a partition group fits on one node")
    assert f"and {taken} workers of their nodes." in text
    remedy = f"Give a divisor or a multiple of {max(workers)}, the workers of a node"
    assert remedy in text


def nodes_as_told(nodes: list[str]) -> list[str]:
    """Return what a worker finds where torchrun has numbered the nodes of all ranks so."""
    os.environ["GROUP_RANK"] = nodes[dist.get_rank()]
    try:
        return _nodes(dist.get_world_size())
    finally:
        del os.environ["GROUP_RANK"]


@pytest.mark.parametrize(
    "nodes", [["0", "0", "0", "1"], ["0", "1", "1", "1"], ["0", "0", "1", "1"]]
)
def test_all_workers_agree_on_the_nodes_however_many_each_has(
    pool: WorkerPool, nodes: list[str]
) -> None:
    assert pool.run(nodes_as_told, nodes) == [nodes] * NUM_WORKERS


def nodes_of_equal_size(num_workers: int) -> list[str]:
    """Return what a worker finds where it is only told how many workers a node has."""
    os.environ["LOCAL_WORLD_SIZE"] = str(num_workers)
    try:
        return _nodes(dist.get_world_size())
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]


def test_without_numbers_of_nodes_ranks_stand_one_after_the_other(pool: WorkerPool) -> None:
    assert pool.run(nodes_of_equal_size, 2) == [["0", "0", "1", "1"]] * NUM_WORKERS
