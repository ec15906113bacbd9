"""Every number of groups up to 64: the start, every single loss, and the shares of the batch."""

from __future__ import annotations

from itertools import chain

import pytest

from mics_core.data.order import micro_batches_of_group, positions_of_worker
from mics_core.elastic.events import (
    AnnounceGeneration,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    RunPhase,
    Tick,
)
from tests.elastic.driver import Driver, training

pytestmark = pytest.mark.pure

MOST = 64


def announced(decisions: list[object]) -> list[tuple[int, ...]]:
    return [decision.groups for decision in decisions if isinstance(decision, AnnounceGeneration)]


@pytest.mark.long
def test_every_run_begins_with_all_wanted_groups_or_after_the_grace_with_the_minimum() -> None:
    for wanted in range(1, MOST + 1):
        for minimum in range(1, wanted + 1):
            driver = Driver(wanted, minimum)
            driver.start()
            # Their start does not matter here, only that they are ready.
            for group_id in range(minimum - 1):
                driver.machine.groups[group_id].phase = GroupPhase.READY
                driver.machine.groups[group_id].ready_at = driver.now
            if minimum < wanted:
                driver.tell(GroupPlaced(minimum))
            assert driver.tell(Tick()) == []
            decisions = [*driver.ready(minimum - 1)]
            if minimum < wanted:
                assert announced(decisions) == []
                decisions = [*driver.wait(20)]
            assert announced(decisions) == [tuple(range(minimum))]


@pytest.mark.long
def test_after_every_single_loss_the_survivors_keep_their_order_or_wait_for_the_minimum() -> None:
    for num_groups in range(2, MOST + 1):
        before = training(num_groups, minimum=max(1, num_groups - 1))
        for lost in range(num_groups):
            driver = before.copy()
            survivors = tuple(group for group in range(num_groups) if group != lost)
            decisions = [*driver.tell(GroupLost(lost, "Its node is gone."))]
            assert announced(decisions) == [survivors]
            if lost not in (0, num_groups // 2, num_groups - 1):
                continue
            driver.enter(*survivors)
            joined = driver.ready(num_groups)
            assert announced([*joined]) == [(*survivors, num_groups)]


def test_every_single_loss_at_the_minimum_waits_for_the_replacement() -> None:
    for num_groups in range(2, MOST + 1, 7):
        before = training(num_groups, minimum=num_groups)
        for lost in range(num_groups):
            driver = before.copy()
            assert announced([*driver.tell(GroupLost(lost, "Its node is gone."))]) == []
            assert driver.machine.phase == RunPhase.WAITING
            survivors = tuple(group for group in range(num_groups) if group != lost)
            assert announced([*driver.ready(num_groups)]) == [(*survivors, num_groups)]


def test_the_members_of_every_generation_share_each_micro_batch_once_and_in_order() -> None:
    for num_groups in range(1, MOST + 1):
        for num_micro_batches in {num_groups, num_groups + 1, 2 * num_groups + 3, 97, 128}:
            if num_micro_batches < num_groups:
                continue
            shares = [
                micro_batches_of_group(num_micro_batches, num_groups, place)
                for place in range(num_groups)
            ]
            assert list(chain(*shares)) == list(range(num_micro_batches))
            sizes = sorted(len(share) for share in shares)
            assert sizes[0] >= 1
            assert sizes[-1] - sizes[0] <= 1


def test_every_layout_of_up_to_64_workers_uses_each_sample_of_the_global_batch_once() -> None:
    for num_workers in range(1, MOST + 1):
        for partition_size in (p for p in range(1, num_workers + 1) if num_workers % p == 0):
            num_groups = num_workers // partition_size
            batch = (num_groups + 1) * partition_size * 2
            positions = [
                position
                for place in range(num_groups)
                for index in micro_batches_of_group(num_groups + 1, num_groups, place)
                for rank in range(partition_size)
                for position in positions_of_worker(
                    3,
                    index,
                    global_batch_size=batch,
                    micro_batch_size=2,
                    partition_size=partition_size,
                    rank=rank,
                )
            ]
            assert positions == list(range(3 * batch, 4 * batch))
