"""Collectives inside a node that send from where a tensor lies to where it belongs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from mics_core.comm.direct import exchange_directly, gather_directly
from tests.engine.worker_pool import WorkerPool, running_pool

SIZE = 4
BUILT_WITH_S, LIMIT_S = 100.0, 1.0


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(SIZE) as pool:
        yield pool


def backend(name: str) -> Any:
    store = PrefixStore(name, dist.distributed_c10d._get_default_store())
    limit = timedelta(seconds=BUILT_WITH_S)
    return dist.ProcessGroupGloo(store, dist.get_rank(), dist.get_world_size(), limit)


def row_of(rank: int, to: int) -> torch.Tensor:
    return torch.arange(5.0) + 100 * rank + 10 * to


def gather(name: str, is_in_place: bool) -> list[list[float]]:
    members, rank = backend(name), dist.get_rank()
    rows = torch.full((SIZE, 5), -1.0)
    mine = rows[rank] if is_in_place else torch.empty(5)
    mine.copy_(row_of(rank, 0))
    gather_directly(rows, mine, members)
    return rows.tolist()


def exchange(name: str) -> list[list[float]]:
    members, rank = backend(name), dist.get_rank()
    received = torch.full((SIZE, 5), -1.0)
    exchange_directly(received, [row_of(rank, to) for to in range(SIZE)], members)
    return received.tolist()


def wait_for_one_that_never_comes(name: str) -> tuple[float, str]:
    members = backend(name)
    members._set_default_timeout(timedelta(seconds=LIMIT_S))
    if dist.get_rank() == SIZE - 1:
        dist.barrier()
        return 0.0, ""
    begin, error = time.monotonic(), ""
    try:
        gather_directly(torch.empty(SIZE, 5), torch.zeros(5), members)
    except RuntimeError as caught:
        error = str(caught)
    waited_s = time.monotonic() - begin
    dist.barrier()
    return waited_s, error


@pytest.mark.parametrize("is_in_place", [False, True])
def test_a_gather_has_the_row_of_each_member(pool: WorkerPool, is_in_place: bool) -> None:
    expected = [row_of(rank, 0).tolist() for rank in range(SIZE)]
    name = f"gather {is_in_place}"
    assert pool.run(gather, name, is_in_place) == [expected] * SIZE


def test_an_exchange_brings_what_each_other_member_has_for_this_one(pool: WorkerPool) -> None:
    for rank, received in enumerate(pool.run(exchange, "exchange")):
        for other, row in enumerate(received):
            expected = [-1.0] * 5 if other == rank else row_of(other, rank).tolist()
            assert row == expected


def test_the_time_limit_is_the_one_that_was_set_last(pool: WorkerPool) -> None:
    for waited_s, error in pool.run(wait_for_one_that_never_comes, "limit")[:-1]:
        assert error
        # Members whose peers have given up may hear of that before their own time is over.
        assert waited_s < BUILT_WITH_S / 2
