"""The paper's rule: sharding and two-hop synchronisation train as one process does."""

from __future__ import annotations

import pytest

from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

# (partition groups, partition size, micro-batches of the step)
EVEN = [(r, p, r * m) for r in (1, 2, 3) for p in (1, 2, 4) for m in (1, 4)]
UNEVEN = [(2, 2, 3), (3, 2, 4), (3, 1, 5), (3, 4, 4)]


def check_against_one_process(
    pool: WorkerPool,
    text: str,
    layout: tuple[int, int, int],
    tolerance: float = 1e-5,
    **changes: object,
) -> None:
    num_groups, partition_size, num_micro_batches = layout
    spec = small_job(
        text,
        partition_size=partition_size,
        training__global_batch_size=num_micro_batches * partition_size,
        groups__wanted=num_groups,
        **changes,
    )
    results = pool.run(train_over_groups, spec, num_groups, partition_size)
    ours = [result for result in results if result is not None]
    gold = train_in_one_process(spec)
    assert len(gold.losses) == spec.training.steps
    assert spec.training.gradient_clipping is not None
    assert min(gold.norms) > spec.training.gradient_clipping  # each step is clipped
    for result in ours:
        assert result["losses"] == pytest.approx(gold.losses, rel=tolerance)
        assert result["norms"] == pytest.approx(gold.norms, rel=tolerance)
    assert relative_difference(ours[0]["parameters"], gold.parameters) < tolerance
    # Workers of the same rank hold the same shard, to the bit, in every partition group.
    for rank in range(partition_size):
        assert len({result["digest"] for result in ours[rank::partition_size]}) == 1


@pytest.mark.parametrize("layout", EVEN, ids=lambda layout: "groups{}-p{}-micro{}".format(*layout))
def test_even_division_trains_as_one_process(
    pool: WorkerPool, text: str, layout: tuple[int, int, int]
) -> None:
    check_against_one_process(pool, text, layout)


@pytest.mark.parametrize(
    "layout", UNEVEN, ids=lambda layout: "groups{}-p{}-micro{}".format(*layout)
)
def test_uneven_division_trains_as_one_process(
    pool: WorkerPool, text: str, layout: tuple[int, int, int]
) -> None:
    check_against_one_process(pool, text, layout)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_embeddings_train_as_one_process(
    pool: WorkerPool, text: str, tied: bool
) -> None:
    check_against_one_process(pool, text, (2, 4, 4), model__tie_embeddings=tied)


@pytest.mark.parametrize("family", ["llama", "bert", "roberta"])
def test_every_family_trains_as_one_process(pool: WorkerPool, text: str, family: str) -> None:
    check_against_one_process(pool, text, (2, 2, 3), model__family=family, model__num_heads=11)


def test_adamw_trains_as_one_process_in_double_precision(pool: WorkerPool, text: str) -> None:
    # AdamW divides by the gradient's own size, so rounding noise in gradients that are zero in
    # exact arithmetic (the bias of the attention's keys) becomes a full step in fp32. In fp64 the
    # noise stays below eps, and the comparison can be strict.
    check_against_one_process(
        pool,
        text,
        (3, 2, 4),
        tolerance=1e-10,
        training__precision="fp64",
        training__optimizer={"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1},
        training__schedule={"kind": "cosine", "warmup_steps": 1},
    )


def test_activation_checkpointing_changes_nothing(pool: WorkerPool, text: str) -> None:
    check_against_one_process(pool, text, (2, 2, 4), training__activation_checkpointing=True)


def test_bf16_stays_close_to_one_process(pool: WorkerPool, text: str) -> None:
    spec = small_job(
        text, partition_size=2, training__precision="bf16", training__global_batch_size=8
    )
    ours = pool.run(train_over_groups, spec, 2, 2)[0]
    gold = train_in_one_process(
        spec.model_copy(update={"training": spec.training.model_copy(update={"precision": "fp32"})})
    )
    assert ours["losses"] == pytest.approx(gold.losses, rel=1e-2)
    assert ours["losses"] != pytest.approx(gold.losses, rel=1e-7)  # it did compute in bf16


def test_dropout_depends_on_the_micro_batch_and_not_on_the_group(
    pool: WorkerPool, text: str
) -> None:
    spec = small_job(text, partition_size=2, model__dropout=0.2, training__global_batch_size=8)
    alone = pool.run(train_over_groups, spec, 1, 2)[0]
    shared = pool.run(train_over_groups, spec, 3, 2)[0]
    without = train_in_one_process(
        spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": 0.0})})
    )
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert alone["losses"] != pytest.approx(without.losses, rel=1e-3)  # it did drop
