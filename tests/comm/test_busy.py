"""A rate is that of a time in which all workers are busy, whoever begins or ends first."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from mics_core.comm.busy import calls_per_s
from tests.engine.worker_pool import WorkerPool, running_pool

HELD_S = 0.005
"""For which a call has what the workers share."""
MEASURED_S = (0.1, 0.5, 0.1)
"""Of each rank: the second one goes on when the others have measured."""
ALONE = 15
"""Calls of the first rank before the others begin: most of what it would have measured."""
BEGIN, WAIT = "busy/begin", timedelta(seconds=30)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(3) as pool:
        yield pool


def rate_of_turns(folder: Path) -> float:
    """Measure turns at one thing that all workers want; all but rank 0 come late."""
    control, rank = dist.new_group(backend="gloo"), dist.get_rank()
    store = dist.distributed_c10d._get_default_store()
    calls = 0

    def take_a_turn() -> None:
        nonlocal calls
        with (folder / "shared").open("w") as shared:
            fcntl.flock(shared, fcntl.LOCK_EX)
            time.sleep(HELD_S)
        calls += 1
        if rank == 0 and calls == ALONE:
            store.set(BEGIN, "")

    if rank != 0:  # which fails where rank 0 waits for the others before it works
        store.wait([BEGIN], WAIT)
    rate = calls_per_s(take_a_turn, MEASURED_S[rank], control)
    dist.destroy_process_group(control)
    return rate


def test_workers_that_share_what_they_need_measure_their_shares(
    pool: WorkerPool, tmp_path: Path
) -> None:
    """Together they cannot have more than there is; each by itself would measure all of it."""
    rates = pool.run(rate_of_turns, tmp_path)
    assert all(rate > 0.0 for rate in rates)
    assert sum(rates) * HELD_S < 1.2
