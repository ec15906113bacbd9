"""Copies leave the links to the second hop, but never for good."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch.distributed as dist

from mics_core.engine.link_use import LinkUse
from mics_core.engine.units import UnitDriver
from mics_core.spec import JobSpec
from tests.engine.jobs import small_job
from tests.engine.layouts import train_over_groups
from tests.engine.worker_pool import WorkerPool

NUM_WORKERS = 4
SOON_S = 10.0
SIZE = 2
DELAY_S = 0.3


def test_a_copy_does_not_wait_while_the_members_compute() -> None:
    use = LinkUse()
    use.wait_until_free()
    use.begin()
    use.end()
    use.wait_until_free()


def test_a_copy_waits_for_the_end_of_a_second_hop() -> None:
    use = LinkUse()
    use._usual_s = 1000.0
    use.begin()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(use.wait_until_free)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        use.end()
        waiting.result(SOON_S)


def test_a_second_hop_that_takes_longer_than_usual_does_not_hold_the_copy() -> None:
    """It may be the member that waits for the copy which holds the second hop."""
    use = LinkUse()
    use._usual_s = 0.05
    begin = time.monotonic()
    use.begin()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(use.wait_until_free).result(SOON_S)
    assert time.monotonic() - begin >= 0.05


def train_with_a_slow_second_hop(spec: JobSpec) -> tuple[float, float] | None:
    """Return when the last second hop of this worker was over, and its copies might go on."""
    times: dict[str, float] = {}
    finish, end = UnitDriver.finish, LinkUse.end

    def slow_finish(driver: UnitDriver) -> tuple[list[list[float]], str]:
        outcome = finish(driver)
        if dist.get_rank() == SIZE - 1:
            time.sleep(DELAY_S)
        times["second hop"] = time.monotonic()
        return outcome

    def noted_end(use: LinkUse) -> None:
        times["end"] = time.monotonic()
        end(use)

    with (
        mock.patch.object(UnitDriver, "finish", slow_finish),
        mock.patch.object(LinkUse, "end", noted_end),
    ):
        trained = train_over_groups(spec, 2, SIZE)
    return None if trained is None else (times["second hop"], times["end"])


def test_copies_wait_for_the_second_hops_of_all_workers_of_their_group(
    pool: WorkerPool, text: str
) -> None:
    spec = small_job(text, partition_size=SIZE, training__steps=2, groups__wanted=2)
    times = [times for times in pool.run(train_with_a_slow_second_hop, spec) if times is not None]
    mine = times[:SIZE]
    assert len(mine) == SIZE
    last_hop = max(hop for hop, _ in mine)
    assert mine[0][0] < last_hop - 0.5 * DELAY_S, "they were to differ"
    for _, end in mine:
        assert end >= last_hop
