"""A step whose members are not all alive is broken off between micro-batches, by whole groups.

Whatever a group has computed of it stays in hand, and the others' micro-batches are divided anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.losing import Survived, train_through_a_loss
from tests.engine.worker_pool import WorkerPool

STEPS, MICRO_BATCHES = 4, 4
"""Of each of two groups in a step."""
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
BROKEN_OFF = "A member was lost: the step was broken off."
STRATEGIES = {
    "flat": Strategy(),
    "never": Strategy(reshard="never"),
    "node": Strategy("node", "group", *["hierarchical"] * 4),
    "added up in the node": Strategy("always", "node", *["hierarchical"] * 4),
}


def job(text: str, size: int, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * MICRO_BATCHES * size,
        training__steps=STEPS,
        training__precision="fp64",
        training__optimizer=ADAMW,
        groups__wanted=2,
        **changes,
    )


def lose(
    pool: WorkerPool, spec: JobSpec, size: int, hears: tuple[int, int], strategy: str | None
) -> tuple[Sequence[Survived], Sequence[Survived]]:
    """Break step 1 off in one group before its n-th micro-batch; return it, and the other one."""
    group, place = hears
    chosen = STRATEGIES[strategy] if strategy is not None else None
    questions = MICRO_BATCHES + place
    results = pool.run(train_through_a_loss, spec, 2, size, (group, questions), chosen)
    workers = [result for result in results if result is not None]
    gold = train_in_one_process(spec).losses
    assert len(workers) == 2 * size
    for worker in workers:
        assert worker.losses == pytest.approx(gold, rel=1e-10)
    for rank in range(size):
        assert workers[rank].digest == workers[size + rank].digest
    groups = workers[:size], workers[size:]
    # One worker heard of the loss, and its whole group broke step 1 off.
    for worker in groups[group]:
        assert worker.breaks == [(1, BROKEN_OFF)]
    # The other group finds the connections closed when it has computed its part.
    for worker in groups[1 - group]:
        ((step, error),) = worker.breaks
        assert (step, error == BROKEN_OFF) == (1, False)
    return groups[group], groups[1 - group]


@pytest.mark.parametrize(
    ("size", "strategy", "changes", "hears"),
    [
        (1, None, {}, (0, 2)),
        *[(2, "flat", {}, (0, place)) for place in (0, 1, 3)],
        (2, "never", {}, (0, 1)),
        (4, "node", {}, (0, 1)),
        (4, "added up in the node", {}, (0, 1)),
        # One micro-batch is left, the other group's: this one sends what it has.
        (1, None, {}, (1, 3)),
        (1, None, {"engine__offload_optimizer": True}, (0, 2)),
        (2, "flat", {}, (1, 3)),
        (4, "added up in the node", {}, (1, 3)),
        (2, "flat", {"training__determinism": "bitwise"}, (0, 2)),
        (2, "flat", {"training__determinism": "bitwise"}, (1, 3)),
        (2, "flat", {"engine__offload_optimizer": True}, (1, 3)),
    ],
)
def test_no_micro_batch_of_a_broken_step_is_computed_twice(
    pool: WorkerPool,
    text: str,
    size: int,
    strategy: str | None,
    changes: dict[str, object],
    hears: tuple[int, int],
) -> None:
    broke, other = lose(pool, job(text, size, **changes), size, hears, strategy)
    group, place = hears
    left = MICRO_BATCHES - place
    parts = left - left // 2, left // 2
    for worker in broke:
        assert worker.micro_batches == (STEPS - 1) * MICRO_BATCHES + place + parts[group]
    for worker in other:
        assert worker.micro_batches == STEPS * MICRO_BATCHES + parts[1 - group]


@pytest.mark.parametrize("strategy", ["flat", "never"])
def test_a_job_may_have_a_broken_step_computed_again(
    pool: WorkerPool, text: str, strategy: str
) -> None:
    spec = job(text, 2, engine__reuse_gradients=False)
    broke, other = lose(pool, spec, 2, (0, 2), strategy)
    for worker in broke:
        assert worker.micro_batches == STEPS * MICRO_BATCHES + 2
    for worker in other:
        assert worker.micro_batches == (STEPS + 1) * MICRO_BATCHES
