"""Partition groups over several nodes, and every way to move the model states, against one process.

Layouts are nodes × workers a node: 2 × 2, 2 × 4 and 4 × 2, each with p = all of them.
"""

from __future__ import annotations

import pytest

from mics_core.comm.nodes import NodeGrid
from mics_core.engine.strategy import settle_strategy
from mics_core.errors import LayoutError
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.spec.job import EngineSpec
from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.observing import train_observed
from tests.engine.overlapping import train_held_up
from tests.engine.worker_pool import WorkerPool

# Workers of a partition group and of each of its nodes.
GRIDS = [(4, 2), (8, 4), (8, 2)]
STAGED = default_strategy(8, 4)
STRATEGIES = {
    "flat": Strategy(),
    "paper": STAGED,
    "flat gathers": Strategy(scatter_block="hierarchical", scatter_root="hierarchical"),
    "flat scatters": Strategy(gather_block="hierarchical", gather_root="hierarchical"),
    "mixed": Strategy(gather_block="hierarchical", scatter_root="hierarchical"),
    "never": Strategy(reshard="never"),
    "never, staged": Strategy("never", "group", *["hierarchical"] * 4),
    "node": Strategy("node", "group", *["hierarchical"] * 4),
    "node, added there": Strategy("node", "node", *["hierarchical"] * 4),
    "added in the node": Strategy("always", "node", *["hierarchical"] * 4),
}
SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}


def check(
    pool: WorkerPool,
    text: str,
    grid: tuple[int, int],
    strategy: Strategy | None,
    *,
    num_groups: int = 1,
    num_micro_batches: int = 3,
    tolerance: float = 1e-5,
    **changes: object,
) -> list[dict[str, object]]:
    size, workers_per_node = grid
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=num_micro_batches * size,
        groups__wanted=num_groups,
        **changes,
    )
    results = pool.run(train_over_groups, spec, num_groups, size, workers_per_node, strategy)
    ours = [result for result in results if result is not None]
    gold = train_in_one_process(spec)
    for result in ours:
        assert result["losses"] == pytest.approx(gold.losses, rel=tolerance)
    assert relative_difference(ours[0]["parameters"], gold.parameters) < tolerance
    for rank in range(size):
        assert len({result["digest"] for result in ours[rank::size]}) == 1
    return ours


# Every strategy on the smallest grid, and those that differ most on the others.
MOST_DIFFERENT = ["flat", "paper", "never, staged", "node, added there"]
CASES = [((4, 2), name) for name in STRATEGIES]
CASES += [(grid, name) for grid in ((8, 4), (8, 2)) for name in MOST_DIFFERENT]


@pytest.mark.parametrize(("grid", "name"), CASES)
def test_every_strategy_trains_as_one_process(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str
) -> None:
    check(pool, text, grid, STRATEGIES[name], training__steps=2)


@pytest.mark.parametrize(
    ("grid", "name"),
    [(grid, "paper") for grid in GRIDS] + [(grid, "node, added there") for grid in GRIDS],
)
def test_every_route_trains_as_one_process_in_double_precision(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str
) -> None:
    check(
        pool,
        text,
        grid,
        STRATEGIES[name],
        tolerance=1e-10,
        training__steps=2,
        training__precision="fp64",
        training__optimizer=ADAMW,
    )


@pytest.mark.parametrize(
    ("name", "num_micro_batches"), [("paper", 2), ("never", 5), ("node, added there", 5)]
)
def test_several_groups_over_several_nodes_train_as_one_process(
    pool: WorkerPool, text: str, name: str, num_micro_batches: int
) -> None:
    check(
        pool,
        text,
        (4, 2),
        STRATEGIES[name],
        num_groups=2,
        num_micro_batches=num_micro_batches,
        model__tie_embeddings=False,
    )


@pytest.mark.parametrize(
    ("grid", "name"),
    [
        ((2, 2), "flat"),
        ((2, 2), "never"),
        ((4, 2), "paper"),
        ((4, 2), "never"),
        ((4, 2), "node, added there"),
    ],
)
def test_bf16_stays_close_to_one_process_in_fp32(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str
) -> None:
    size, workers_per_node = grid
    chosen = STRATEGIES[name]
    spec = small_job(
        text, partition_size=size, training__precision="bf16", training__global_batch_size=2 * size
    )
    ours = pool.run(train_over_groups, spec, 1, size, workers_per_node, chosen)[0]
    gold = train_in_one_process(
        spec.model_copy(update={"training": spec.training.model_copy(update={"precision": "fp32"})})
    )
    assert ours["losses"] == pytest.approx(gold.losses, rel=1e-2)
    assert ours["losses"] != pytest.approx(gold.losses, rel=1e-7)  # it did compute in bf16


def test_bf16_in_one_worker_is_bf16_in_two(pool: WorkerPool, text: str) -> None:
    changes = {"training__precision": "bf16", "training__global_batch_size": 8}
    alone = small_job(text, partition_size=1, **changes)
    two = small_job(text, partition_size=2, **changes)
    one = pool.run(train_over_groups, alone, 2, 1)[0]
    assert one["losses"] == pytest.approx(
        pool.run(train_over_groups, two, 1, 2)[0]["losses"], rel=1e-3
    )


@pytest.mark.parametrize("layout", [(2, 2), (2, 1)])
def test_offload_changes_nothing(pool: WorkerPool, text: str, layout: tuple[int, int]) -> None:
    num_groups, size = layout
    check(
        pool,
        text,
        (size, 2 if size > 1 else 1),
        None,
        num_groups=num_groups,
        engine__offload_optimizer=True,
        tolerance=1e-10,
        training__precision="fp64",
        training__optimizer=ADAMW,
    )


def test_compiled_blocks_train_as_one_process(pool: WorkerPool, text: str) -> None:
    check(pool, text, (2, 2), None, engine__compile=True, training__steps=2)


def test_checkpointed_activations_and_kept_parameters_go_together(
    pool: WorkerPool, text: str
) -> None:
    for name in ("never", "node, added there"):
        check(pool, text, (4, 2), STRATEGIES[name], training__activation_checkpointing=True)


@pytest.mark.parametrize(
    ("layout", "bucket_mib"),
    [((3, 1, 1), 1e-6), ((2, 2, 2), 1e-6), ((2, 2, 2), 64.0), ((2, 4, 2), 0.1)],
)
def test_every_unit_crosses_the_replication_group_once_a_step(
    pool: WorkerPool, text: str, layout: tuple[int, int, int], bucket_mib: float
) -> None:
    num_groups, size, workers_per_node = layout
    steps, num_units = 3, 5
    spec = small_job(
        text,
        partition_size=size,
        model__num_layers=num_units - 1,
        training__global_batch_size=4 * num_groups * size,  # four micro-batches each
        training__steps=steps,
        groups__wanted=num_groups,
        engine__bucket_mib=bucket_mib,
    )
    results = pool.run(train_observed, spec, num_groups, size, workers_per_node, None)
    for _, seen in filter(None, results):
        assert len(seen.reductions) == num_units
        assert set(seen.reductions.values()) == {steps}
        assert seen.outside_the_buffer == 0  # what is sent is the buffer itself, no copy of it
        if bucket_mib == 64.0:
            assert len(seen.sizes) == steps
        if bucket_mib == 1e-6:
            assert len(seen.sizes) == steps * num_units
        # All but the last bucket left while backward was still running.
        assert seen.left_during_backward == len(seen.sizes) - steps
        # A bucket is closed as soon as it is full, so only the last of a step is smaller.
        smaller = [size for size in seen.sizes if size < bucket_mib * 2**20]
        assert len(smaller) <= steps


@pytest.mark.parametrize("name", ["flat", "paper"])
def test_gathers_and_scatters_over_nodes_run_beside_the_computation(
    pool: WorkerPool, text: str, name: str
) -> None:
    num_blocks, num_micro_batches = 4, 4
    spec = small_job(
        text,
        partition_size=4,
        model__num_layers=num_blocks,
        training__global_batch_size=4 * num_micro_batches // 2,
        training__steps=2,
    )
    results = pool.run(train_held_up, spec, 4, 2, STRATEGIES[name])
    for missed, num_waits in filter(None, results):
        assert not missed
        assert num_waits == num_micro_batches * 3 * (num_blocks - 1)


# Units: root and two blocks. Two micro-batches a step, two steps: twelve passes over a unit.
GATHERS = {
    # The root is gathered once a micro-batch: FSDP2 keeps it between forward and backward.
    "flat": {"gather_flat": 2 * 2 * (2 + 2 + 1)},
    "paper": {"gather_column": 2 * 2 * (2 + 2 + 1), "gather_rows": 2 * 2 * (2 + 2 + 1)},
    "never": {"gather_flat": 2 * 3},
    "node, added there": {"gather_column": 2 * 3, "gather_rows": 2 * 2 * (2 + 2 + 1)},
}
SCATTERS = {
    "flat": {"scatter_flat": 2 * 2 * 3},
    "paper": {"scatter_rows": 2 * 2 * 3, "scatter_columns": 2 * 2 * 3},
    "never": {"scatter_flat": 2 * 2 * 3},
    "node, added there": {"scatter_rows": 2 * 2 * 3, "scatter_columns": 2 * 3},
}


@pytest.mark.parametrize("name", GATHERS)
def test_nodes_exchange_what_the_strategy_says_and_no_more(
    pool: WorkerPool, text: str, name: str
) -> None:
    spec = small_job(text, partition_size=4, training__global_batch_size=8, training__steps=2)
    results = pool.run(train_observed, spec, 1, 4, 2, STRATEGIES[name])
    for _, seen in filter(None, results):
        assert dict(seen.stages) == GATHERS[name] | SCATTERS[name]


def test_what_a_job_leaves_open_is_as_the_paper_has_it() -> None:
    assert settle_strategy(EngineSpec(), NodeGrid(2, 4)) == STAGED
    assert settle_strategy(EngineSpec(), NodeGrid(1, 8)) == Strategy()
    assert settle_strategy(EngineSpec(hierarchical="never"), NodeGrid(2, 4)) == Strategy()
    asked = EngineSpec(reshard="node", accumulation="node")
    assert settle_strategy(asked, NodeGrid(2, 4)) == STRATEGIES["node, added there"]


@pytest.mark.parametrize("field", ["reshard", "accumulation"])
@pytest.mark.parametrize("grid", [NodeGrid(1, 4), NodeGrid(4, 1)])
def test_node_needs_several_nodes_of_several_workers(field: str, grid: NodeGrid) -> None:
    with pytest.raises(LayoutError) as caught:
        settle_strategy(EngineSpec(**{field: "node"}), grid)
    assert f"engine.{field}: node is refused" in str(caught.value)
    assert "choose a partition size over several whole nodes" in str(caught.value)
