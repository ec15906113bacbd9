"""The weak-scaling benchmark's runs, rows and goals, which the network could make it miss."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from benchmarks.harness import emulated
from benchmarks.harness.emulated import build_emulated
from benchmarks.harness.world import Step
from benchmarks.network.measure import Measured
from benchmarks.weak import __main__ as weak
from benchmarks.weak.rows import (
    GOAL,
    GROUPS,
    LINKS_MBIT,
    NUM_MICRO_BATCHES,
    NUM_STEPS,
    OURS,
    PARTITION_SIZE,
    SYSTEMS,
    TUNED,
    Emulated,
    Run,
    goals_of,
    rows_of,
    runs_of,
)
from mics_core.spec.job import EngineSpec

FULL = "fsdp2 full"
START_S, IMPORT_S = 10.0, 5.0
"""Of the workers of one turn, and of the preloaded process of one node on one of two cores."""


def result_of(system: str, groups: int, link_mbit: float, outcome: float | str) -> Measured:
    turns = [] if isinstance(outcome, str) else [[Step(outcome, 1.0, 0, 0)]]
    error = outcome if isinstance(outcome, str) else None
    return Measured(system, f"{groups}x2", link_mbit, error=error, turns=turns)


def results_of(
    outcomes: dict[tuple[float, int], dict[str, float | str]],
) -> dict[Run, list[Measured]]:
    return {
        Run(link_mbit, groups, tuple(of_systems)): [
            result_of(system, groups, link_mbit, outcome) for system, outcome in of_systems.items()
        ]
        for (link_mbit, groups), of_systems in outcomes.items()
    }


def test_other_links_are_measured_at_the_ends_alone() -> None:
    assert runs_of([200.0, 1000.0], [2, 4, 8], SYSTEMS) == [
        *(Run(200.0, number, (OURS, TUNED, FULL)) for number in (2, 4, 8)),
        *(Run(1000.0, number, (TUNED,)) for number in (2, 8)),
    ]


def test_the_parameters_are_those_of_the_emulated_model() -> None:
    model = build_emulated(7, 5, 3, 0.0, 0.0)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert Emulated(layers=3, width=5, vocab_size=7).num_parameters == counted


class FakeTime:
    """A clock that moves when somebody sleeps or is said to work."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("works_s", [0.0, 1.0])
def test_a_layer_takes_the_stated_time_its_arithmetic_included(
    monkeypatch: pytest.MonkeyPatch, works_s: float
) -> None:
    clock = FakeTime()
    monkeypatch.setattr(emulated, "time", clock)
    model = build_emulated(7, 5, 3, 2.0, 4.0)

    def work(*_: object) -> None:
        clock.now += works_s

    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(work)
            module.register_full_backward_hook(work)
    logits = model(torch.tensor([[1, 2, 3]]))
    forward_s = clock.now
    logits.sum().backward()
    assert (forward_s, clock.now - forward_s) == (3 * 2.0, 3 * 4.0)


def test_a_network_that_hides_nothing_would_cost_a_tenth_of_a_step_and_the_goal() -> None:
    model, link_mbit, most = Emulated(), LINKS_MBIT[0], GROUPS[-1]
    assert (link_mbit, most) == (200.0, 8)
    assert model.unhidden_share(most, link_mbit) >= 0.10
    steps = [model.compute_s + model.wire_s(groups, link_mbit) for groups in (GROUPS[0], most)]
    assert steps[0] / steps[1] < GOAL - 0.03
    # It can be hidden: a layer's gradient passes while the backward of the next one computes.
    assert model.wire_s(most, link_mbit) / model.layers < 2 * model.forward_s
    # The model before this one: its step is 14.4 s too.
    before = Emulated(layers=4, width=512, forward_s=0.3, vocab_size=512)
    assert before.unhidden_share(most, 1000.0) < 0.01


def best_efficiency(model: Emulated, bucket_mib: float, groups: int) -> float:
    """Efficiency of an engine whose buckets leave as they fill, and that loses nothing else."""

    def step_s(num_groups: int) -> float:
        whole_s = model.wire_s(num_groups, LINKS_MBIT[0])
        layer = (model.width + 2) * model.width
        units = [(2 * model.forward_s, layer)] * model.layers  # backward, and numbers in it
        units.append((0.0, model.num_parameters - layer * model.layers))
        now = free = 0.0
        filled = 0
        for index, (backward_s, numbers) in enumerate(units):
            now, filled = now + backward_s, filled + numbers
            if 4 * filled / PARTITION_SIZE >= bucket_mib * 2**20 or index == len(units) - 1:
                free = max(now, free) + whole_s * filled / model.num_parameters
                filled = 0
        return model.compute_s - now + max(now, free)

    return step_s(GROUPS[0]) / step_s(groups)


def test_the_goal_can_be_reached_where_each_layer_is_a_bucket_and_not_otherwise() -> None:
    for groups in GROUPS[1:]:
        assert best_efficiency(Emulated(), 1.0, groups) > GOAL
    assert best_efficiency(Emulated(), EngineSpec().bucket_mib, GROUPS[-1]) < GOAL


def test_the_whole_is_estimated_below_a_quarter_of_an_hour() -> None:
    model, total_s = Emulated(), 0.0
    for run in runs_of(LINKS_MBIT, GROUPS, SYSTEMS):
        workers = PARTITION_SIZE * run.num_groups
        # Two gathers and a scatter that sends twice, for each micro-batch, none of them hidden.
        sent_bytes = NUM_MICRO_BATCHES * 4 * (workers - 1) / workers * 4 * model.num_parameters
        full_s = model.compute_s + 8 * sent_bytes / (run.link_mbit * 1e6)
        ours_s = model.compute_s + model.wire_s(run.num_groups, run.link_mbit)
        steps_s = [full_s if system == FULL else ours_s for system in run.systems]
        total_s += sum((1 + NUM_STEPS) * step_s + START_S for step_s in steps_s)
        total_s += IMPORT_S * run.num_groups / 2
    assert total_s < 900


def test_efficiency_counts_from_the_fewest_groups_over_the_same_link() -> None:
    rows = rows_of(
        results_of({(200.0, 2): {OURS: 1.0}, (200.0, 8): {OURS: 1.25}, (1000.0, 2): {OURS: 3.0}})
    )
    found = {(row["link_mbit"], row["groups"]): row["efficiency"] for row in rows}
    assert found == {(200.0, 2): 1.0, (200.0, 8): 0.8, (1000.0, 2): 1.0}


def test_a_system_that_failed_keeps_a_row_and_becomes_no_measure_of_others() -> None:
    rows = rows_of(
        results_of(
            {
                (200.0, 2): {OURS: 1.0, FULL: "no memory"},
                (200.0, 4): {OURS: 1.0, FULL: 2.0},
                (200.0, 8): {OURS: 1.0, FULL: 3.0},
            }
        )
    )
    full = [row for row in rows if row["system"] == FULL]
    place = {"system": FULL, "link_mbit": 200.0}
    assert full == [
        place | {"groups": 2, "error": "no memory"},
        place | {"groups": 4, "step_s_median": 2.0, "efficiency": None},
        place | {"groups": 8, "step_s_median": 3.0, "efficiency": None},
    ]


def goals_when(**changes: float | str) -> tuple[list[dict[str, Any]], bool]:
    """The goals, as the meta file has them, and whether `--strict` fails."""
    few: dict[str, float | str] = {TUNED: 1.0, FULL: 1.0}
    many: dict[str, float | str] = {TUNED: 1.0, FULL: 2.0}
    few |= {FULL if key == "full_few" else TUNED: changes[key] for key in changes if "few" in key}
    many |= {FULL if key == "full" else TUNED: changes[key] for key in changes if "few" not in key}
    rows = rows_of(results_of({(200.0, 2): few, (200.0, 8): many}))
    goals = goals_of(rows)
    return [goal.as_json() for goal in goals], weak.is_missed(rows, goals)


def test_the_goal_is_ninety_nine_per_cent_of_ours_among_more_groups() -> None:
    assert GOAL == 0.99
    name = f"{TUNED}, 8 groups, 200 Mbit/s: efficiency"
    reached = {"name": name, "wanted": 0.99, "ratio": 1.0, "reached": True}
    assert goals_when() == ([reached], False)
    goals, is_missed = goals_when(ours=1 / 0.9899)
    assert goals[0]["reached"] is False
    assert is_missed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ours": "no memory"}, "failed: no memory"),
        ({"ours_few": "no memory"}, "no result among 2 groups"),
    ],
)
def test_what_was_not_measured_misses(change: dict[str, str], reason: str) -> None:
    goals, is_missed = goals_when(**change)
    assert (goals[0]["reached"], goals[0]["not_measured"]) == (None, reason)
    assert is_missed


def test_strict_fails_on_a_peer_that_failed_and_where_no_goal_is_asked_for() -> None:
    goals, is_missed = goals_when(full="no memory")
    assert goals[0]["reached"] is True
    assert is_missed
    assert weak.is_missed([], [])


@pytest.mark.parametrize(("step_s", "status"), [(1.0, 0), (1.2, 1)])
def test_the_meta_file_says_whether_the_goal_was_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, status: int
) -> None:
    def measure(*arguments: Any) -> list[Measured]:
        run: Run = arguments[3]
        slower = step_s if run.num_groups > 2 else 1.0
        return [result_of(each, run.num_groups, run.link_mbit, slower) for each in run.systems]

    monkeypatch.setattr(weak, "reason_to_skip", lambda: None)
    monkeypatch.setattr(weak.signal, "signal", lambda *_: None)
    monkeypatch.setattr(weak, "_measure", measure)
    output = tmp_path / "weak.json"
    monkeypatch.setattr(sys, "argv", ["weak", "--strict", "--output", str(output)])
    assert weak.main() == status
    meta = json.loads(output.with_suffix(".meta.json").read_text(encoding="utf-8"))
    wanted = [goal for goal in meta["goals"] if not goal["name"].startswith(f"{OURS},")]
    assert {goal["wanted"] for goal in wanted} == {GOAL}
    assert {goal["reached"] for goal in wanted} == {status == 0}
    told = [goal for goal in meta["goals"] if goal not in wanted]
    assert {goal["wanted"] for goal in told} == {None}
    assert len(told) == len(GROUPS) - 1
    assert {share["groups"] for share in meta["unhidden_share"]} == set(GROUPS)
    assert all("error" not in row for row in json.loads(output.read_text(encoding="utf-8")))


def test_strict_fails_where_nothing_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weak, "reason_to_skip", lambda: "no root")
    for options, status in ([], 0), (["--strict"], 1):
        monkeypatch.setattr(sys, "argv", ["weak", *options])
        assert weak.main() == status
