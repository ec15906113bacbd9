"""A step whose members are not all alive is broken off between micro-batches, by whole groups.

Whatever a group has computed of it stays in hand, and the others' micro-batches are divided anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.losing import Survived, train_through_losses
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 8
STEPS = 4
MICRO_BATCHES = 4
"""Of each of two groups in a step."""
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
BROKEN_OFF = "A member was lost: the step was broken off."
STRATEGIES = {
    "flat": Strategy(),
    "never": Strategy(reshard="never"),
    "node": Strategy("node", "group", *["hierarchical"] * 4),
    "added up in the node": Strategy("always", "node", *["hierarchical"] * 4),
}


def job(text: str, size: int, micro_batches: int = MICRO_BATCHES, **changes: object) -> JobSpec:
    return small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * micro_batches * size,
        training__steps=STEPS,
        training__precision="fp64",
        training__optimizer=ADAMW,
        groups__wanted=2,
        **changes,
    )


def lose(
    pool: WorkerPool, spec: JobSpec, hears: Sequence[tuple[int, int]], strategy: str | None
) -> list[Survived]:
    """Break step 1 in one group before its n-th micro-batch, and again under later generations.

    Returns:
        All workers, group by group.
    """
    size = spec.partition_size
    assert isinstance(size, int)
    (group, place), *later = hears
    before = spec.num_micro_batches(size) // 2
    chosen = STRATEGIES[strategy] if strategy is not None else None
    results = pool.run(
        train_through_losses, spec, 2, size, [(group, before + place), *later], chosen
    )
    workers = [result for result in results if result is not None]
    assert len(workers) == 2 * size
    gold = train_in_one_process(spec).losses
    for worker in workers:
        assert worker.losses == pytest.approx(gold, rel=1e-10)
        assert [step for step, _ in worker.breaks] == [1] * len(hears)
    for rank in range(size):
        assert workers[rank].digest == workers[size + rank].digest
    for turn, (group, _) in enumerate(hears):
        for number, worker in enumerate(workers):
            # One worker heard of the loss, and its whole group broke the step off. The other one
            # finds the connections closed when it has computed its part.
            is_broken_off = worker.breaks[turn][1] == BROKEN_OFF
            assert is_broken_off == (number // size == group)
    return workers


@pytest.mark.parametrize(
    ("size", "strategy", "changes", "hears"),
    [
        (1, None, {}, [(0, 2)]),
        *[(2, "flat", {}, [(0, place)]) for place in (0, 1, 3)],
        (2, "never", {}, [(0, 1)]),
        (4, "node", {}, [(0, 1)]),
        (4, "added up in the node", {}, [(0, 1)]),
        (1, None, {"engine__offload_optimizer": True}, [(0, 2)]),
        (2, "flat", {"training__determinism": "bitwise"}, [(0, 2)]),
        # One micro-batch is left, the other group's: this one sends what it has.
        (1, None, {}, [(1, 3)]),
        (2, "flat", {}, [(1, 3)]),
        (4, "added up in the node", {}, [(1, 3)]),
        (2, "flat", {"training__determinism": "bitwise"}, [(1, 3)]),
        (2, "flat", {"engine__offload_optimizer": True}, [(1, 3)]),
        # What was left is broken off by the one, then by the other; that one has nothing left then.
        (1, None, {}, [(0, 1), (1, 0), (0, 0)]),
        (2, "flat", {}, [(0, 1), (1, 0), (0, 0)]),
        (4, "added up in the node", {}, [(0, 1), (1, 0), (0, 0)]),
        (2, "flat", {"training__determinism": "bitwise"}, [(0, 1), (1, 0), (0, 0)]),
    ],
)
def test_no_micro_batch_of_a_broken_step_is_computed_twice(
    pool: WorkerPool,
    text: str,
    size: int,
    strategy: str | None,
    changes: dict[str, object],
    hears: list[tuple[int, int]],
) -> None:
    workers = lose(pool, job(text, size, **changes), hears, strategy)
    if len(hears) == 1:
        # One group's whole part of the step, and the other's up to there.
        kept = (MICRO_BATCHES + hears[0][1]) / (2 * MICRO_BATCHES)
        assert all(worker.in_hand == [0, kept, 0, 0] for worker in workers)
    for rank in range(size):
        computed = workers[rank].micro_batches + workers[size + rank].micro_batches
        assert computed == STEPS * 2 * MICRO_BATCHES


@pytest.mark.parametrize(
    ("size", "strategy"), [(1, None), (2, "flat"), (4, "added up in the node")]
)
def test_a_group_with_nothing_in_hand_and_nothing_left_adds_nothing(
    pool: WorkerPool, text: str, size: int, strategy: str | None
) -> None:
    """It heard of the loss before its only micro-batch, which the other one takes over."""
    workers = lose(pool, job(text, size, micro_batches=1), [(1, 0)], strategy)
    for worker in workers[:size]:
        assert worker.micro_batches == STEPS + 1
    for worker in workers[size:]:
        assert worker.micro_batches == STEPS - 1


@pytest.mark.parametrize(
    ("strategy", "determinism"), [("flat", "relaxed"), ("never", "relaxed"), ("flat", "bitwise")]
)
def test_a_job_may_have_a_broken_step_computed_again(
    pool: WorkerPool, text: str, strategy: str, determinism: str
) -> None:
    spec = job(text, 2, engine__reuse_gradients=False, training__determinism=determinism)
    workers = lose(pool, spec, [(0, 2)], strategy)
    for worker in workers[:2]:
        assert worker.micro_batches == STEPS * MICRO_BATCHES + 2
    for worker in workers[2:]:
        assert worker.micro_batches == (STEPS + 1) * MICRO_BATCHES
