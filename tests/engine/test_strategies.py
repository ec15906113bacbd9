"""Partition groups over several nodes, and every way to move the model states, against one process.

Layouts are nodes × workers a node: 2 × 2, 2 × 4 and 4 × 2, each with p = all of them.
"""

from __future__ import annotations

import os
from functools import cache

import pytest

from mics_core.comm.nodes import NodeGrid
from mics_core.engine.strategy import settle_strategy
from mics_core.errors import LayoutError
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.spec.job import EngineSpec, JobSpec
from tests.engine.jobs import Trained, relative_difference, small_job, train_in_one_process
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
    "never, added in the node": Strategy("never", "node", *["hierarchical"] * 4),
}
SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}


def gold_of(spec: JobSpec, precision: str | None = None) -> Trained:
    """Train in one process, once for all layouts and routes of a job."""
    changes: dict[str, object] = {"partition_size": "auto", "groups": {"wanted": 1}}
    job = spec.model_dump(mode="json") | changes
    job["training"]["precision"] = precision or spec.training.precision
    return _gold(JobSpec.model_validate(job).model_dump_json())


@cache
def _gold(job: str) -> Trained:
    return train_in_one_process(JobSpec.model_validate_json(job))


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
    gold = gold_of(spec)
    for result in ours:
        assert result["losses"] == pytest.approx(gold.losses, rel=tolerance)
        assert result["norms"] == pytest.approx(gold.norms, rel=tolerance)
    assert relative_difference(ours[0]["parameters"], gold.parameters) < tolerance
    for rank in range(size):
        assert len({result["digest"] for result in ours[rank::size]}) == 1
    return ours


# Flat and in stages, each with every way to reshard that it has.
MODES = ["flat", "never", "paper", "never, staged", "node, added there", "never, added in the node"]
EVERYWHERE = [(grid, name) for grid in GRIDS for name in MODES]
# How far losses and parameters may be off, and with which optimizer. AdamW would turn the rounding
# noise of fp32 into whole steps (see `test_sameness`). bf16 is held against one process in fp32;
# these steps move the parameters by 7e-3.
PRECISIONS = {
    "fp32": (1e-5, 1e-5, SGD),
    "fp64": (1e-10, 1e-10, ADAMW),
    "bf16": (1e-4, 1e-4, SGD),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("grid", "name"),
    EVERYWHERE,
    ids=lambda part: part if isinstance(part, str) else "p{}-k{}".format(*part),
)
def test_every_route_trains_as_one_process_in_every_precision(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str, precision: str
) -> None:
    size, workers_per_node = grid
    loss_tolerance, parameter_tolerance, optimizer = PRECISIONS[precision]
    spec = small_job(
        text,
        partition_size=size,
        # Two micro-batches, two steps: sums over both, and parameters that have changed.
        training__global_batch_size=2 * size,
        training__steps=2,
        training__precision=precision,
        training__optimizer=optimizer,
    )
    ours = pool.run(train_over_groups, spec, 1, size, workers_per_node, STRATEGIES[name])[0]
    gold = gold_of(spec, "fp32" if precision == "bf16" else None)
    assert ours["losses"] == pytest.approx(gold.losses, rel=loss_tolerance)
    assert relative_difference(ours["parameters"], gold.parameters) < parameter_tolerance
    assert spec.training.gradient_clipping is not None
    assert min(gold.norms) > spec.training.gradient_clipping  # each step is clipped
    if precision != "bf16":
        assert ours["norms"] == pytest.approx(gold.norms, rel=loss_tolerance)
    if precision == "bf16":
        assert ours["losses"] != pytest.approx(gold.losses, rel=1e-7)  # it did compute in bf16


OTHERS = [name for name in STRATEGIES if name not in MODES]


@pytest.mark.parametrize(
    ("grid", "name"),
    [*(((4, 2), name) for name in OTHERS), *((grid, "added in the node") for grid in GRIDS[1:])],
)
def test_every_other_strategy_trains_as_one_process(
    pool: WorkerPool, text: str, grid: tuple[int, int], name: str
) -> None:
    check(pool, text, grid, STRATEGIES[name], training__steps=2)


@pytest.mark.parametrize(
    ("num_groups", "grid", "num_micro_batches", "name"),
    [
        (1, (4, 2), 1, "node, added there"),
        (1, (4, 2), 4, "never, staged"),
        (2, (4, 2), 2, "paper"),
        (2, (4, 2), 5, "node, added there"),
        (2, (4, 2), 8, "never"),
        (2, (6, 3), 3, "flat"),
        (2, (6, 2), 3, "node, added there"),
        (3, (4, 2), 3, "never, staged"),
        (3, (4, 2), 4, "flat"),
    ],
)
def test_any_number_of_groups_and_micro_batches_over_nodes_trains_as_one_process(
    pool: WorkerPool,
    text: str,
    num_groups: int,
    grid: tuple[int, int],
    num_micro_batches: int,
    name: str,
) -> None:
    check(
        pool,
        text,
        grid,
        STRATEGIES[name],
        num_groups=num_groups,
        num_micro_batches=num_micro_batches,
        model__tie_embeddings=False,
        training__steps=2,
    )


@pytest.mark.parametrize(
    ("family", "grid", "name"),
    [
        ("bert", (8, 4), "paper"),  # masked language modelling, like roberta
        ("roberta", (4, 2), "flat"),
        ("llama", (8, 2), "node, added there"),
    ],
)
def test_every_family_trains_over_nodes_as_one_process(
    pool: WorkerPool, text: str, family: str, grid: tuple[int, int], name: str
) -> None:
    changes = {"model__family": family, "model__num_heads": 11, "training__steps": 2}
    check(pool, text, grid, STRATEGIES[name], **changes)


def test_dropout_does_not_depend_on_the_route_or_the_group(pool: WorkerPool, text: str) -> None:
    changes = {"training__global_batch_size": 8, "training__steps": 2}
    spec = small_job(text, partition_size=4, model__dropout=0.2, **changes)
    inside, flat, staged = (
        pool.run(train_over_groups, spec, num_groups, 4, workers, STRATEGIES[name])[0]["losses"]
        for num_groups, workers, name in [(1, 4, "flat"), (1, 2, "flat"), (2, 2, "paper")]
    )
    assert flat == pytest.approx(inside, rel=1e-5)
    assert staged == pytest.approx(inside, rel=1e-5)
    without = train_in_one_process(small_job(text, partition_size=4, **changes))
    assert inside != pytest.approx(without.losses, rel=1e-3)  # it did drop


def test_bf16_in_one_worker_is_bf16_in_two(pool: WorkerPool, text: str) -> None:
    changes = {"training__precision": "bf16", "training__global_batch_size": 8}
    alone = small_job(text, partition_size=1, **changes)
    two = small_job(text, partition_size=2, **changes)
    one = pool.run(train_over_groups, alone, 2, 1)[0]
    assert one["losses"] == pytest.approx(
        pool.run(train_over_groups, two, 1, 2)[0]["losses"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("num_groups", "grid", "precision"),
    [(2, (2, 2), "fp64"), (2, (1, 1), "fp64"), (2, (4, 2), "fp32"), (1, (8, 2), "fp64")],
)
def test_offload_changes_nothing(
    pool: WorkerPool, text: str, num_groups: int, grid: tuple[int, int], precision: str
) -> None:
    check(
        pool,
        text,
        grid,
        None,
        num_groups=num_groups,
        engine__offload_optimizer=True,
        tolerance=1e-10 if precision == "fp64" else 1e-5,
        training__precision=precision,
        # SGD in fp32: AdamW turns its rounding noise into full steps.
        training__optimizer=ADAMW if precision == "fp64" else SGD,
    )


def test_offload_in_bf16_over_nodes_is_the_same_to_the_bit(pool: WorkerPool, text: str) -> None:
    changes = {"training__precision": "bf16", "training__optimizer": ADAMW}
    plain, offloaded = (
        pool.run(
            train_over_groups,
            small_job(text, partition_size=4, engine__offload_optimizer=offloads, **changes),
            1,
            4,
            2,
        )[:4]
        for offloads in (False, True)
    )
    for there, here in zip(plain, offloaded, strict=True):
        assert here["losses"] == there["losses"]
        assert here["digest"] == there["digest"]


def test_checkpointed_activations_and_kept_parameters_go_together(
    pool: WorkerPool, text: str
) -> None:
    for grid, name in zip(GRIDS, ("never", "node, added there", "never, staged"), strict=True):
        check(pool, text, grid, STRATEGIES[name], training__activation_checkpointing=True)


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


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shares memory on Linux")
@pytest.mark.parametrize(
    ("layout", "shared"),
    [
        ((4, 1, 4), {"second"}),
        ((2, 2, 4), {"second", "first"}),
        ((2, 2, 2), {"first"}),
        ((2, 2, 1), set()),
    ],
)
def test_workers_of_a_node_share_memory_in_both_hops(
    pool: WorkerPool, text: str, layout: tuple[int, int, int], shared: set[str]
) -> None:
    num_groups, size, workers_per_node = layout
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * num_groups * size,
        groups__wanted=num_groups,
        engine__bucket_mib=1e-6,
    )
    results = pool.run(train_observed, spec, num_groups, size, workers_per_node, None)
    for _, seen in filter(None, results):
        assert seen.doors.keys() == shared
        if "second" in shared:
            # Two for each bucket, and one at the end of the step.
            assert seen.doors["second"] == 2 * len(seen.sizes) + spec.training.steps
        if "first" in shared:
            assert seen.doors["first"] == seen.stages.total()


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
