"""Two partition groups, each over several nodes, against one process: both hops at once.

Nodes × workers a node of each group: 2 × 4, 4 × 2 and 2 × 2.
"""

from __future__ import annotations

import pytest

from tests.engine.jobs import relative_difference, small_job
from tests.engine.layouts import train_over_groups
from tests.engine.test_strategies import ADAMW, SGD, STRATEGIES, check, gold_of
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 16


@pytest.mark.parametrize("name", ["flat", "paper", "never, staged", "node, added there"])
@pytest.mark.parametrize("grid", [(8, 4), (8, 2)], ids=["2x4", "4x2"])
def test_two_groups_of_eight_train_as_one_process(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str
) -> None:
    check(
        pool,
        text,
        grid,
        STRATEGIES[name],
        num_groups=2,
        num_micro_batches=3,  # one group takes two
        training__steps=2,
        training__optimizer=SGD,
    )


def test_two_groups_of_eight_train_as_one_process_in_double_precision(
    pool: WorkerPool, text: str
) -> None:
    check(
        pool,
        text,
        (8, 4),
        STRATEGIES["paper"],
        num_groups=2,
        num_micro_batches=4,
        tolerance=1e-10,
        training__steps=2,
        training__precision="fp64",
        training__optimizer=ADAMW,
    )


@pytest.mark.parametrize("name", ["flat", "paper", "never, staged", "node, added there"])
def test_two_groups_over_nodes_train_in_bf16_as_close_as_one(
    pool: WorkerPool, text: str, name: str
) -> None:
    spec = small_job(
        text,
        partition_size=4,
        training__global_batch_size=16,
        training__steps=2,
        training__precision="bf16",
        training__optimizer=SGD,
        groups__wanted=2,
    )
    results = [r for r in pool.run(train_over_groups, spec, 2, 4, 2, STRATEGIES[name]) if r]
    gold = gold_of(spec, "fp32")
    assert results[0]["losses"] == pytest.approx(gold.losses, rel=1e-4)
    assert results[0]["losses"] != pytest.approx(gold.losses, rel=1e-7)  # it did compute in bf16
    assert relative_difference(results[0]["parameters"], gold.parameters) < 1e-4
    for rank in range(4):
        assert len({result["digest"] for result in results[rank::4]}) == 1
