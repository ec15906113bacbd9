"""Memory through which the workers of a node hand each other tensors, in turns of two slots."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from mics_core.comm import shared, staging
from mics_core.comm.shared import Neighbours, Offer
from mics_core.comm.staging import Staging, share_staging
from tests.engine.worker_pool import WorkerPool, running_pool

SIZE = 4
TIMEOUT_S = 30.0
SMALL_SLOT_BYTES = 4096

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shares memory on Linux")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(SIZE) as pool:
        yield pool


def shared_with_small_slots() -> Staging:
    staging.STAGING_SLOT_BYTES = SMALL_SLOT_BYTES
    formed = share_staging(dist.group.WORLD, TIMEOUT_S)
    assert formed is not None
    assert formed.rank == dist.get_rank()
    return formed


def values_of(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


def hand_round(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check a gather and two scatters of this shape, many turns after each other."""
    formed, rank = shared_with_small_slots(), dist.get_rank()
    parts = [values_of(each, (SIZE, *shape), dtype) for each in range(SIZE)]
    for turn in range(5):
        if rank == turn % SIZE:
            time.sleep(0.01)  # lets the others run ahead as far as they can
        rows = torch.empty(SIZE, *shape, dtype=dtype)
        rows[rank] = parts[rank][0]
        formed.gather(rows, rows[rank])
        assert torch.equal(rows, torch.stack([part[0] for part in parts]))
        total = torch.empty(shape, dtype=dtype)
        formed.scatter(total, parts[rank], add=False)
        gold = parts[0][rank] + parts[1][rank] + parts[2][rank] + parts[3][rank]
        assert torch.equal(total, gold)
        formed.scatter(total, parts[rank], add=True)
        for part in parts:
            gold = gold + part[rank]
        assert torch.equal(total, gold)
    formed.close()


# One turn, a turn that fills the slot, several, several by rows; and nothing at all.
SHAPES = [(3,), (256,), (2000,), (3, 700), (0,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_of_any_size_go_round_turn_after_turn(
    pool: WorkerPool, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    pool.run(hand_round, shape, dtype)


def share_without_offer(without: int) -> bool:
    offers = Offer.of
    if dist.get_rank() == without:
        Offer.of = lambda memory: None  # type: ignore[method-assign, assignment]
    try:
        return share_staging(dist.group.WORLD, TIMEOUT_S) is None
    finally:
        Offer.of = offers  # type: ignore[method-assign]


def cannot_meet(*_: Any) -> Neighbours:
    raise ConnectionRefusedError


def share_without_meeting(without: int) -> bool:
    with ExitStack() as patches:
        # The others wait all their time for the one that does not come.
        patches.enter_context(mock.patch.object(shared, "_MEET_S", 0.5))
        if dist.get_rank() == without:
            patches.enter_context(mock.patch.object(Offer, "_meet", cannot_meet))
        return share_staging(dist.group.WORLD, TIMEOUT_S) is None


def test_nobody_shares_if_one_cannot(pool: WorkerPool) -> None:
    assert pool.run(share_without_offer, 2) == [True] * SIZE
    assert pool.run(share_without_meeting, 1) == [True] * SIZE


def gather_until_it_breaks(victim: int) -> float:
    formed = shared_with_small_slots()
    rows = torch.zeros(SIZE, 5000)
    dist.barrier()
    begin = time.monotonic()
    error, turn = "", 0
    while not error:
        if dist.get_rank() == victim and turn == 10:
            formed.close()  # as the end of its process does
        try:
            formed.gather(rows, rows[dist.get_rank()])
        except RuntimeError as broken:
            error = str(broken)
        turn += 1
    assert "a worker of this node did not come" in error
    return time.monotonic() - begin


def test_all_know_at_once_of_one_that_goes(pool: WorkerPool) -> None:
    assert max(pool.run(gather_until_it_breaks, 2)) < TIMEOUT_S / 3


def wait_for_one_that_never_comes(limit_s: float) -> float:
    formed = shared_with_small_slots()
    formed.limit(limit_s)
    waited_s = 0.0
    if dist.get_rank() != SIZE - 1:
        begin = time.monotonic()
        with pytest.raises(RuntimeError, match="did not come"):
            formed.gather(torch.zeros(SIZE, 5), torch.zeros(5))
        waited_s = time.monotonic() - begin
    dist.barrier()
    formed.close()
    return waited_s


def test_one_that_is_silent_is_known_at_the_time_limit(pool: WorkerPool) -> None:
    limit_s = 0.5
    *waited_s, _ = pool.run(wait_for_one_that_never_comes, limit_s)
    assert max(waited_s) > limit_s * 0.9
    assert max(waited_s) < TIMEOUT_S / 3
