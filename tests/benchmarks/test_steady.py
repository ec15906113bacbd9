"""The steady benchmark: blocks of steps in turn, and what is made of them."""

from __future__ import annotations

import threading
from itertools import accumulate, cycle, islice
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray")

from benchmarks.harness.goals import is_one_missed
from benchmarks.harness.messages import Block
from benchmarks.network.systems import elastic
from benchmarks.network.systems.blocks import Gate
from benchmarks.steady import (
    ELASTIC,
    EMULATED,
    FIXED,
    PROCESSORS,
    goals_of,
    ratios_of,
    row_of,
    step_s,
)
from mics_core.cluster.messages import Committed, Entered

DEADLINE_S = 30.0


def block_of(steps_s: list[float], begins: float = 100.0, processor_s: float = 1.0) -> Block:
    times = list(accumulate(steps_s, initial=begins))[1:]
    return Block(times, [1.0] * len(times), processor_s)


def test_the_first_steps_of_a_block_do_not_count() -> None:
    assert step_s(block_of([9.0, 5.0, 5.0, 1.0, 2.0, 3.0]), num_dropped=3) == pytest.approx(2.0)
    assert step_s(block_of([9.0, 1.0, 2.0, 3.0]), num_dropped=1) == pytest.approx(2.0)


def test_what_comes_now_and_then_counts_with_its_share() -> None:
    """A heartbeat every fifth step would be in no median."""
    beats = list(islice(cycle([1.0, 1.0, 1.0, 1.0, 1.5]), 23))
    plain, beating = block_of([1.0] * 23), block_of(beats)
    row = row_of([[(FIXED, plain), (ELASTIC, beating)] * 2], num_dropped=3)
    assert row["ratio_median"] == pytest.approx(1.1)


def test_the_cost_beside_elastic_steps_does_not_cancel() -> None:
    """What the reports of a block leave to the next one falls into its dropped steps alone."""
    fixed = block_of([1.02, 1.02, 1.02, *[1.0] * 17])
    elastic = block_of([1.0, 1.01, 1.02, *[1.02] * 17])
    start = [*[(FIXED, fixed), (ELASTIC, elastic)] * 3, (FIXED, fixed)]
    row = row_of([start], num_dropped=3)
    assert row["ratio_median"] == pytest.approx(1.02)
    assert (row["pairs"], row["blocks"]) == (6, 7)
    assert is_one_missed(goals_of([{"compute": EMULATED} | row]))


def test_the_goal_is_held_on_an_emulated_device_and_what_two_cores_do_is_told() -> None:
    good, slow = {"compute": EMULATED, "ratio_median": 1.01}, {"compute": PROCESSORS}
    goal, told = goals_of([good, slow | {"ratio_median": 1.5}])
    assert goal.is_reached
    assert (told.wanted, told.ratio) == (None, 1.5)
    assert is_one_missed(goals_of([slow | {"ratio_median": 1.0}])), "it was not measured"


def test_no_pair_is_made_of_two_starts() -> None:
    """The last block of a start and the first of the next are of processes of their own."""
    slow, fast = block_of([2.0] * 6), block_of([1.0] * 6)
    starts = [
        [(FIXED, slow), (ELASTIC, slow), (FIXED, slow)],
        [(ELASTIC, fast), (FIXED, fast), (ELASTIC, fast)],
    ]
    row = row_of(starts, num_dropped=1)
    assert (row["ratio_min"], row["ratio_max"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (row["starts"], row["pairs"], row["blocks"]) == (2, 4, 6)


@pytest.mark.parametrize("drift", [0.98, 1.0, 1.02])
def test_a_machine_that_becomes_slower_or_faster_cancels(drift: float) -> None:
    ways = islice(cycle([FIXED, ELASTIC]), 21)
    steps = [(way, drift**n * (1.05 if way == ELASTIC else 1.0)) for n, way in enumerate(ways)]
    assert median(ratios_of(steps)) == pytest.approx(1.05, rel=1e-3)


def test_the_loop_trains_whole_blocks_and_waits_between_them() -> None:
    gate = Gate()
    committed: list[int] = []

    def loop() -> None:
        gate.wait()
        for step in range(7):
            committed.append(step)
            gate.committed(float(step))
        gate.ended("the loop has finished")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    gate.until_reached()
    assert committed == []
    assert gate.run(3).losses == [0.0, 1.0, 2.0]
    assert committed == [0, 1, 2]
    second = gate.run(2)
    assert (second.losses, second.times_s) == ([3.0, 4.0], sorted(second.times_s))
    with pytest.raises(RuntimeError, match="the loop has finished"):
        gate.run(3)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_loop_that_ends_before_its_first_step_says_why() -> None:
    gate = Gate()
    gate.ended("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        gate.until_reached()


def test_an_elastic_worker_has_reported_its_step_before_it_waits() -> None:
    gate = Gate()
    link = elastic._Gated(gate, SimpleNamespace(), 0, 0)
    commit: Any = SimpleNamespace(step=0, loss=2.0)

    def loop() -> None:
        link.entered(1, 0, 0.1)
        link.committed(commit, 0.5)

    threading.Thread(target=loop, daemon=True).start()
    assert gate.run(1).losses == [2.0]
    entered, committed = link._outbox.get_nowait(), link._outbox.get_nowait()
    assert entered == Entered(0, 1, 0, 0.1)
    assert isinstance(committed, Committed)
    assert committed.commit is commit


def test_a_step_that_breaks_ends_the_measurement() -> None:
    gate = Gate()
    link = elastic._Gated(gate, SimpleNamespace(), 0, 0)
    link.broken(1, 7, "a member is gone", has_state=True)
    with pytest.raises(RuntimeError, match="step 7 was not committed: a member is gone"):
        gate.run(1)
