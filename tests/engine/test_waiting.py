"""How long workers wait for others is measured, told with every step, and betrays who is slow."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from mics_core.cluster.messages import Committed
from mics_core.cluster.pace import Pace, slowness_of
from mics_core.data.batches import Batch
from mics_core.engine.membership import StaticMembership
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import Trainer
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4
DELAY_S = 0.1
MICRO_BATCHES = 3
"""Of each of two groups in a step."""


def train_with_a_slow_worker(spec: JobSpec, size: int) -> dict[str, Any] | None:
    """The last worker of group 1 computes for a tenth of a second more in every micro-batch."""
    loss_of = Trainer._loss
    slow = 2 * size - 1
    told: list[Committed] = []
    last = time.perf_counter()

    def loss(trainer: Trainer, batch: Batch) -> torch.Tensor:
        if dist.get_rank() == slow:
            time.sleep(DELAY_S)
        return loss_of(trainer, batch)

    def committed(membership: StaticMembership, commit: StepCommit, took_s: float) -> None:
        # As a worker's link does.
        nonlocal last
        before, last = last, time.perf_counter()
        told.append(Committed(commit, last - before, took_s, 0.0))
        membership.commits.append(commit)

    begin = time.perf_counter()
    with (
        mock.patch.object(Trainer, "_loss", loss),
        mock.patch.object(StaticMembership, "committed", committed),
    ):
        result = train_over_groups(spec, 2, size)
    if result is None:
        return None
    return result | {"seconds": time.perf_counter() - begin, "told": told}


@pytest.mark.parametrize("changes", [{}, {"training__determinism": "bitwise"}])
@pytest.mark.parametrize("size", [1, 2])
def test_those_that_wait_for_a_slow_worker_say_for_how_long_and_its_group_stands_out(
    pool: WorkerPool, text: str, size: int, changes: dict[str, object]
) -> None:
    spec = small_job(
        text,
        partition_size=size,
        training__global_batch_size=2 * MICRO_BATCHES * size,
        training__steps=4,
        groups__wanted=2,
        **changes,
    )
    results = [r for r in pool.run(train_with_a_slow_worker, spec, size) if r is not None]
    assert len(results) == 2 * size
    fast, slow = results[0], results[-1]
    added_s = MICRO_BATCHES * DELAY_S
    for step in range(1, 4):
        # All workers of a group tell the same.
        assert len({worker["waited_s"][step] for worker in results[:size]}) == 1
        assert fast["waited_s"][step] > 0.8 * added_s
        # Of two workers in the slow group, one waits for the other.
        assert slow["waited_s"][step] < fast["waited_s"][step]
    assert sum(fast["waited_s"]) < fast["seconds"]
    # Every worker of a group, and so its rank 0, tells that its group is held up or holds up.
    for place, others in ((0, results[:size]), (1, results[size:])):
        assert len({tuple(m.commit.waited_across_s for m in w["told"]) for w in others}) == 1, place
    slowness = slowness_of({0: pace_of(results[0], 0), 1: pace_of(results[size], 1)})
    assert slowness[1] > 2.0
    assert slowness[0] < 0.5


def pace_of(worker: dict[str, Any], place: int) -> float | None:
    pace = Pace()
    for message in worker["told"]:
        pace.take_in(message, place)
    return pace.sample_s
