"""The goals of the benchmarks under fire: their numbers, and what misses them."""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray")

from benchmarks import checkpoint, churn, join
from benchmarks.churn import Churned, Turn
from benchmarks.harness.goals import Goal
from benchmarks.recovery.goals import OURS, goals_of
from benchmarks.recovery.setting import FAULTS

COMMANDS = ("checkpoint", "churn", "join", "recovery.__main__", "steady")


def missed(goals: list[Goal]) -> list[str]:
    return [goal.name for goal in goals if goal.is_missed]


def row(system: str, fault: str, stall: float, longest: float, extra: float) -> dict[str, Any]:
    return {
        "system": system,
        "fault": fault,
        "stall_s_median": stall,
        "stall_s_max": longest,
        "extra_step_ratio_median": extra,
    }


def rows_of(
    system: str, stall: float = 0.4, longest: float = 1.9, extra: float = 0.09
) -> list[dict[str, Any]]:
    return [row(system, fault, stall, longest, extra) for fault in FAULTS]


def test_a_recovery_within_all_limits_and_ahead_of_the_peers_reaches_every_goal() -> None:
    goals = goals_of([*rows_of(OURS), *rows_of("torchft", 0.41), *rows_of("ray train", 16)], FAULTS)
    assert missed(goals) == []
    assert all(goal.is_reached for goal in goals)
    assert len(goals) == (2 + 2 + 1 + 1 + 1) + 2 * 3


@pytest.mark.parametrize(
    ("worse", "names"),
    [
        (
            {"stall": 0.5},
            [
                "worker killed: stall in the median, s",
                "group killed: stall in the median, s",
            ],
        ),
        ({"longest": 2.0}, ["worker killed: longest stall, s", "group killed: longest stall, s"]),
        (
            {"extra": 0.1},
            [
                f"{fault}: extra time of the members, steps"
                for fault in ("node added", "group drained")
            ],
        ),
    ],
)
def test_a_recovery_at_a_limit_misses(worse: dict[str, float], names: list[str]) -> None:
    assert missed(goals_of(rows_of(OURS, **worse), FAULTS)) == names


def test_a_peer_that_is_as_fast_is_not_behind() -> None:
    goals = goals_of([*rows_of(OURS), *rows_of("torchft tuned")], ["node killed"])
    assert missed(goals) == ["node killed: stall in the median, s, beside torchft tuned"]


def test_a_peer_that_failed_is_told_and_we_who_failed_have_missed() -> None:
    failed = {"system": "torchft", "error": "no network\nat all"}
    told = goals_of([*rows_of(OURS), failed], ["node killed"])[-1]
    assert (told.reason, told.is_missed) == ("it failed: no network", False)
    ours = {"system": OURS, "error": "a step was missing"}
    goals = goals_of([ours, *rows_of("torchft")], ["node killed"])
    assert len(missed(goals)) == len(goals) == 2
    assert goals[0].reason == "it failed: a step was missing"


def churned(step_s: float, losses: list[float], undisturbed: list[float]) -> Churned:
    steps: Any = [SimpleNamespace(loss=loss, num_groups=3) for loss in losses]
    samples = SimpleNamespace(due=12, used=12, repeated=0)
    run: Any = SimpleNamespace(steps=steps, course=SimpleNamespace(samples=samples))
    turns = [(Turn(steps, step_s * len(steps)), 1.0)]
    return Churned(turns, Counter({"worker killed": 2}), run, undisturbed)


def test_a_run_under_fire_is_held_against_its_goals() -> None:
    losses = [3.0, 2.0, 1.0]
    longer = {1: 3.0, 2: 1.5, 3: 1.0}
    good = churn.row_of(churned(1 / 0.977001, losses, [*losses, 0.5]), longer, losses)
    assert good["kept_capacity_adjusted"] == pytest.approx(0.977001)
    assert missed(churn.goals_of(good, 479.0)) == []
    assert missed(churn.goals_of(good, 481.0)) == ["seconds of the run under fire"]
    slow = churn.row_of(churned(1 / 0.976, losses, losses), longer, losses)
    assert missed(churn.goals_of(slow, 479.0)) == ["throughput kept beyond the lost capacity"]
    lost = good | {"samples_lost": 1, "samples_repeated": 1}
    assert missed(churn.goals_of(lost, 479.0)) == ["samples lost", "samples repeated"]


@pytest.mark.parametrize("apart", [2.1e-5, math.nan])
def test_losses_that_are_apart_from_the_undisturbed_ones_miss(apart: float) -> None:
    losses = [2.0, 2.0, 2.0]
    other = [2.0, 2.0 + apart, 2.0]
    near = [2.0, 2.0 + 1.9e-5, 2.0]

    def goals(undisturbed: list[float], reference: list[float]) -> list[str]:
        row = churn.row_of(churned(1.0, losses, undisturbed), {3: 1.0}, reference)
        return missed(churn.goals_of(row, 479.0))

    assert goals(near, near) == []
    assert goals(other, losses) == [
        "losses beside the undisturbed run's, largest relative difference"
    ]
    assert goals(losses, other) == ["losses beside one process's, largest relative difference"]


def test_a_checkpoint_may_cost_less_than_two_per_cent() -> None:
    row = checkpoint.row_of([(1.0, 1.01), (1.0, 1.019), (1.0, 1.05)], 100)
    assert row["cost_median"] == pytest.approx(0.019)
    assert missed(checkpoint.goals_of(row)) == []
    assert len(missed(checkpoint.goals_of(row | {"cost_median": 0.02}))) == 1
    assert row["interval_steps"] == 20


def test_a_join_counts_from_its_announcement_to_its_first_share() -> None:
    times = [9.0, 9.0, 2.0, 2.0, 2.1, 2.2, 2.1, 1.6, 1.5, 1.5]
    shares = [3, 3, 3, 3, 3, 3, 3, 4, 4, 4]
    joined = join.join_of(times, shares, at=5, num_nodes=4)
    assert joined.copying_s == [2.2, 2.1]
    assert joined.extra_ratio == pytest.approx((0.1 + 0.2 + 0.1 + 0.1) / 2.0)
    with pytest.raises(RuntimeError, match="raise --after"):
        join.join_of(times[:8], shares[:8], at=5, num_nodes=4)
    with pytest.raises(RuntimeError, match="raise --after"):
        join.join_of(times[:6], shares[:6], at=5, num_nodes=4)


def test_every_number_of_nodes_and_length_of_a_layer_has_the_goals_of_a_join() -> None:
    good = {"extra_step_ratio_median": 0.09, "loss_max_relative_difference": 0.0}
    bad = {"extra_step_ratio_median": 0.1, "loss_max_relative_difference": math.nan}
    rows = [
        {"nodes": 4, "forward_s": 0.1} | good,
        {"nodes": 8, "forward_s": 0.1} | good,
        {"nodes": 8, "forward_s": 0.05} | bad,
    ]
    assert missed(join.goals_of(rows)) == [
        "8 nodes, 0.05 s a layer: extra time of the members, steps",
        "8 nodes, 0.05 s a layer: losses, largest relative difference",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_can_be_told_to_fail_on_a_missed_goal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = importlib.import_module(f"benchmarks.{name}")._parse
    monkeypatch.setattr(sys, "argv", [name])
    assert parse().strict is False
    monkeypatch.setattr(sys, "argv", [name, "--strict"])
    assert parse().strict is True
