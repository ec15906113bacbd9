"""Options that change no number do what they are for, over nodes too."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.modules.module import register_module_forward_pre_hook

from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.jobs import relative_difference, small_job
from tests.engine.layouts import train_over_groups
from tests.engine.test_strategies import SGD, STRATEGIES, gold_of
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4
STEPS = 2
MICRO_BATCHES = 3
LAYERS = 2


def train_counted(
    spec: JobSpec, num_groups: int, size: int, workers_per_node: int, strategy: Strategy | None
) -> tuple[dict[str, Any], int, int] | None:
    """Train; return the result, forward passes of all blocks' MLPs, and graphs compiled."""
    forwards: Counter[str] = Counter()

    def count(module: nn.Module, _: object) -> None:
        forwards[type(module).__name__] += 1

    # Blocks are not compiled under a hook of all modules.
    hook = None if spec.engine.compile else register_module_forward_pre_hook(count)
    graphs = counters["stats"]["unique_graphs"]
    try:
        result = train_over_groups(spec, num_groups, size, workers_per_node, strategy)
    finally:
        if hook is not None:
            hook.remove()
    if result is None:
        return None
    return result, forwards["GPT2MLP"], counters["stats"]["unique_graphs"] - graphs


def train(pool: WorkerPool, text: str, name: str, **changes: object) -> list[Any]:
    spec = small_job(
        text,
        partition_size=4,
        model__num_layers=LAYERS,
        training__global_batch_size=4 * MICRO_BATCHES,
        training__steps=STEPS,
        training__optimizer=SGD,
        **changes,
    )
    precision = spec.training.precision
    found = [each for each in pool.run(train_counted, spec, 1, 4, 2, STRATEGIES[name]) if each]
    gold = gold_of(spec, "fp32" if precision == "bf16" else None)
    tolerance = 1e-4 if precision == "bf16" else 1e-5
    assert found[0][0]["losses"] == pytest.approx(gold.losses, rel=tolerance)
    assert relative_difference(found[0][0]["parameters"], gold.parameters) < tolerance
    return found


@pytest.mark.parametrize("name", ["flat", "paper", "never, staged", "node, added there"])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_checkpointed_blocks_are_computed_twice_and_others_once(
    pool: WorkerPool, text: str, name: str, is_checkpointed: bool
) -> None:
    found = train(pool, text, name, training__activation_checkpointing=is_checkpointed)
    passes = STEPS * MICRO_BATCHES * LAYERS
    for _, forwards, graphs in found:
        assert forwards == passes * (2 if is_checkpointed else 1)
        assert graphs == 0


@pytest.mark.parametrize(
    ("name", "precision", "is_checkpointed"),
    [("node, added there", "fp32", True), ("never, staged", "bf16", False)],
)
def test_compiled_blocks_train_over_nodes_as_one_process(
    pool: WorkerPool, text: str, name: str, precision: str, is_checkpointed: bool
) -> None:
    found = train(
        pool,
        text,
        name,
        engine__compile=True,
        training__activation_checkpointing=is_checkpointed,
        training__precision=precision,
    )
    for _, _, graphs in found:
        assert graphs > 0
