"""A step whose members are not all alive is given up between micro-batches, by whole groups."""

from __future__ import annotations

import pytest

from mics_core.planner.strategy import Strategy
from tests.engine.jobs import small_job, train_in_one_process
from tests.engine.losing import train_through_a_loss
from tests.engine.worker_pool import WorkerPool

STEPS, MICRO_BATCHES = 4, 4
"""Of each of two groups in a step."""
ADAMW = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1}
GIVEN_UP = "A member was lost: the step was given up."
STRATEGIES = {
    "flat": Strategy(),
    "never": Strategy(reshard="never"),
    "node": Strategy("node", "group", *["hierarchical"] * 4),
}


@pytest.mark.parametrize(
    ("size", "strategy", "changes", "place"),
    [
        (1, None, {}, 2),
        *[(2, "flat", {}, place) for place in (0, 1, 3)],
        (2, "never", {}, 1),
        (4, "node", {}, 1),
        (2, "flat", {"training__determinism": "bitwise"}, 2),
    ],
)
def test_what_was_computed_of_a_given_up_step_leaves_no_trace(
    pool: WorkerPool,
    text: str,
    size: int,
    strategy: str | None,
    changes: dict[str, object],
    place: int,
) -> None:
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * MICRO_BATCHES * size,
        training__steps=STEPS,
        training__precision="fp64",
        training__optimizer=ADAMW,
        groups__wanted=2,
        **changes,
    )
    chosen = STRATEGIES[strategy] if strategy is not None else None
    results = pool.run(train_through_a_loss, spec, 2, size, MICRO_BATCHES + place, chosen)
    workers = [result for result in results if result is not None]
    gold = train_in_one_process(spec).losses
    assert len(workers) == 2 * size
    for worker in workers:
        assert worker.losses == pytest.approx(gold, rel=1e-10)
    first, second = workers[:size], workers[size:]
    # One worker heard of the loss, and its whole group gave step 1 up before that micro-batch.
    for worker in first:
        assert worker.breaks == [(1, GIVEN_UP)]
        assert worker.micro_batches == STEPS * MICRO_BATCHES + place
    # The other group finds the connections closed when it has computed its part.
    for worker in second:
        ((step, error),) = worker.breaks
        assert (step, error == GIVEN_UP) == (1, False)
        assert worker.micro_batches == (STEPS + 1) * MICRO_BATCHES
    for rank in range(size):
        assert first[rank].digest == second[rank].digest
