"""Models of one's own that call blocks repeatedly, freeze or leave out some, or break a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from mics_core.engine.build import build_trainer
from mics_core.engine.trainer import Trainer
from mics_core.planner.strategy import Strategy
from mics_core.spec.job import JobSpec
from tests.engine import layouts
from tests.engine.jobs import relative_difference, small_job, train_in_one_process
from tests.engine.layouts import train_over_groups
from tests.engine.observing import train_observed
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4
TOLERANCE = 1e-10
# Groups and partition size; one worker that holds everything does without FSDP2.
LAYOUTS = [(1, 2), (2, 2), (2, 1)]
MODELS: dict[str, dict[str, Any]] = {
    "a block called three times": {"order": [0, 1, 1, 2, 1]},
    "all blocks called twice": {"order": [0, 1, 2, 0, 1, 2]},
    "a block that is never called": {"order": [0, 2]},
    "parameters without a gradient": {"has_unused": True},
    "frozen parameters": {"frozen": ["embedding", "blocks.0.norm", "blocks.2.linear.weight"]},
    "a frozen block": {"frozen": ["blocks.1."]},
    "frozen blocks at the beginning": {"frozen": ["embedding", "blocks.0.", "blocks.1.norm"]},
    "all but the blocks frozen": {"frozen": ["embedding", "norm", "output"]},
    "a frozen block called twice": {"order": [0, 1, 2, 1], "frozen": ["blocks.1."]},
    "blocks that it recomputes itself": {"recomputes": True},
    "blocks that it calls twice and recomputes": {"order": [0, 1, 1, 2], "recomputes": True},
    "all at once": {"order": [1, 0, 1], "frozen": ["blocks.0.", "norm"], "has_unused": True},
}


def own_job(text: str, layout: tuple[int, int], arguments: object, **changes: Any) -> JobSpec:
    num_groups, size = layout
    builder = changes.pop("builder", "build")
    usual: dict[str, Any] = {
        "model": {"callable": f"tests.engine.own_models:{builder}", "arguments": arguments},
        "partition_size": size,
        # Two micro-batches for each group, and one more.
        "training__global_batch_size": (2 * num_groups + 1) * size,
        "training__precision": "fp64",
        "training__steps": 2,
        "groups__wanted": num_groups,
        "engine__bucket_mib": 1e-6,  # each unit leaves as soon as it is complete
    }
    return small_job(text, **usual | changes)


def check(pool: WorkerPool, spec: JobSpec, layout: tuple[int, int], tolerance: float) -> None:
    results = pool.run(train_over_groups, spec, *layout)
    ours = [result for result in results if result is not None]
    gold = train_in_one_process(
        spec.model_copy(update={"training": spec.training.model_copy(update={"precision": "fp64"})})
    )
    for result in ours:
        assert result["losses"] == pytest.approx(gold.losses, rel=tolerance)
        assert result["norms"] == pytest.approx(gold.norms, rel=tolerance)
    assert relative_difference(ours[0]["parameters"], gold.parameters) < tolerance
    for rank in range(layout[1]):
        assert len({result["digest"] for result in ours[rank :: layout[1]]}) == 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "groups{}-p{}".format(*layout))
@pytest.mark.parametrize("name", MODELS)
def test_own_models_train_as_one_process(
    pool: WorkerPool, text: str, name: str, layout: tuple[int, int]
) -> None:
    check(pool, own_job(text, layout, MODELS[name]), layout, TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__activation_checkpointing": True},
        {"engine__reshard": "never"},
        {"engine__compile": True},
        {"engine__offload_optimizer": True},
        {"training__determinism": "bitwise"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_blocks_may_be_called_repeatedly_whatever_else_is_asked(
    pool: WorkerPool, text: str, changes: dict[str, Any]
) -> None:
    spec = own_job(text, (2, 2), {"order": [0, 1, 1, 2, 1]}, **changes)
    check(pool, spec, (2, 2), TOLERANCE)


def test_blocks_may_be_called_repeatedly_by_one_worker_in_bf16(pool: WorkerPool, text: str) -> None:
    # It goes through FSDP2, for its precision, and has nobody to scatter to.
    spec = own_job(text, (2, 1), {"order": [0, 1, 1, 2, 1]}, training__precision="bf16")
    check(pool, spec, (2, 1), 2e-2)


def test_blocks_may_lie_in_lists_of_lists(pool: WorkerPool, text: str) -> None:
    spec = own_job(text, (2, 2), {}, builder="build_nested")
    check(pool, spec, (2, 2), TOLERANCE)


def test_a_block_that_is_never_called_counts_with_a_zero_gradient_everywhere(
    pool: WorkerPool, text: str
) -> None:
    """So weight decay moves it alike, whoever holds it."""
    decay = {"kind": "adamw", "learning_rate": 1e-2, "weight_decay": 0.5}
    alone, over_two = (
        pool.run(
            train_over_groups,
            own_job(
                text,
                (1, size),
                {"order": [0, 2]},
                training__optimizer=decay,
                training__global_batch_size=4,
            ),
            1,
            size,
        )[0]["parameters"]
        for size in (1, 2)
    )
    assert relative_difference(over_two, alone) < TOLERANCE


def test_frozen_parameters_go_on_from_a_checkpoint_in_another_layout(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    def job(layout: tuple[int, int], steps: int) -> JobSpec:
        return own_job(
            text,
            layout,
            {"frozen": ["blocks.1.", "norm"], "order": [0, 1, 2, 0], "has_unused": True},
            training__global_batch_size=4,
            training__steps=steps,
            checkpoint={"directory": str(tmp_path)},
        )

    pool.run(train_over_groups, job((2, 2), 2), 2, 2)
    gold = train_in_one_process(job((1, 1), 4))
    ours = pool.run(train_over_groups, job((2, 1), 4), 2, 1)[0]
    assert ours["losses"] == pytest.approx(gold.losses[2:], rel=TOLERANCE)
    assert relative_difference(ours["parameters"], gold.parameters) < TOLERANCE


def statistics_of_training(
    spec: JobSpec, num_groups: int, size: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a worker's running means before and after training."""
    seen: list[torch.Tensor] = []

    def build(*arguments: Any, **options: Any) -> Trainer:
        trainer = build_trainer(*arguments, **options)
        means = trainer.model.get_buffer("statistics.running_mean")
        seen.extend((means.clone(), means))
        return trainer

    with mock.patch.object(layouts, "build_trainer", build):
        result = train_over_groups(spec, num_groups, size)
    return None if result is None else (seen[0], seen[1])


def test_running_statistics_stay_with_each_worker_and_a_checkpoint_holds_one_workers(
    pool: WorkerPool, text: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "builder": "build_normalised",
        "training__global_batch_size": 4,
        "checkpoint": {"directory": str(tmp_path)},
    }
    first = own_job(text, (2, 2), {}, **changes)
    begun, ended = zip(*pool.run(statistics_of_training, first, 2, 2), strict=True)
    assert all(torch.equal(means, torch.zeros_like(means)) for means in begun)
    assert not any(torch.equal(ended[0], means) for means in ended[1:])
    second = own_job(text, (2, 1), {}, training__steps=3, **changes)
    found = list(filter(None, pool.run(statistics_of_training, second, 2, 1)))
    assert all(torch.equal(begun_again, found[0][0]) for begun_again, _ in found)
    assert any(torch.equal(found[0][0], means) for means in ended)


def test_blocks_that_the_last_micro_batch_leaves_out_keep_their_gradient(
    pool: WorkerPool, text: str
) -> None:
    size, changes = 4, {"builder": "build_alternating", "training__global_batch_size": 2 * 4}
    spec = own_job(text, (1, size), {"calls": 1}, **changes)
    strategy = Strategy("always", "node", *["hierarchical"] * 4)
    results = pool.run(train_over_groups, spec, 1, size, 2, strategy)
    alone = own_job(text, (1, size), {"calls": size}, **changes)
    gold = train_in_one_process(alone, size)
    assert results[0]["losses"] == pytest.approx(gold.losses, rel=TOLERANCE)
    assert relative_difference(results[0]["parameters"], gold.parameters) < TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "num_buckets"),
    [({"frozen": ["blocks.1."]}, 3), ({"recomputes": True}, 4)],
    ids=["past a frozen block", "of blocks that are recomputed"],
)
def test_buckets_leave_during_backward(
    pool: WorkerPool, text: str, arguments: dict[str, Any], num_buckets: int
) -> None:
    spec = own_job(text, (2, 2), arguments)
    for _, seen in filter(None, pool.run(train_observed, spec, 2, 2, 2, None)):
        assert len(seen.sizes) == 2 * num_buckets  # in two steps
        assert seen.left_during_backward == 2 * (num_buckets - 1)
        assert not seen.missed


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "groups{}-p{}".format(*layout))
def test_a_gradient_that_is_not_finite_is_applied_by_nobody(
    pool: WorkerPool, text: str, tmp_path: Path, layout: tuple[int, int]
) -> None:
    num_groups, size = layout
    spec = own_job(
        text,
        layout,
        {"first_call": 2},  # two micro-batches a step and group, so from the second step on
        builder="build_poisoned",
        training__global_batch_size=2 * num_groups * size,
        training__steps=4,
        checkpoint={"directory": str(tmp_path), "interval_steps": 1},
    )
    with pytest.raises(AssertionError) as caught:
        pool.run(train_over_groups, spec, *layout)
    told = str(caught.value)
    assert told.count("The gradient norm of step 1 is") == num_groups * size  # each worker, once
    assert "the step was not applied. Lower training.optimizer.learning_rate" in told
    assert not list(tmp_path.glob("step-*[2-9]"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "groups{}-p{}".format(*layout))
def test_a_step_without_a_label_names_the_data_and_the_step(
    pool: WorkerPool, text: str, layout: tuple[int, int]
) -> None:
    num_groups, size = layout
    spec = own_job(
        text,
        layout,
        {},
        data={
            "kind": "callable",
            "callable": "tests.engine.own_models:build_unlabelled",
            "arguments": {"length": 16},
        },
        training__global_batch_size=2 * num_groups * size,
    )
    with pytest.raises(AssertionError) as caught:
        pool.run(train_over_groups, spec, *layout)
    told = str(caught.value)
    wanted = f"None of the {2 * num_groups * size} samples of step 0, from"
    assert told.count(f"{wanted} tests.engine.own_models:build_unlabelled, has a label") == (
        num_groups * size
    )
    assert "raise training.global_batch_size" in told
