"""The network benchmark's goals: their numbers, what misses them, and none passes unmeasured."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from planning import BY_NODE, CLUSTER, MODEL, layout, workload

from benchmarks.harness.goals import Goal
from benchmarks.harness.world import Step
from benchmarks.network import __main__ as network
from benchmarks.network.goals import evaluate
from benchmarks.network.layouts import (
    default_systems,
    full_sharding,
    parse_layout,
    predicted_systems,
)
from benchmarks.network.measure import Measured, largest_loss_difference
from benchmarks.network.systems.mics import _changed, settings_of
from mics_core.planner.question import Question
from mics_core.planner.strategy import Strategy
from mics_core.spec import parse_job_spec

FULL, DEFERRED, KEPT = "fsdp2 full", "fsdp2 2d deferred", "fsdp2 2d deferred kept"


def row_of(
    system: str,
    nodes: str,
    link_mbit: float | None,
    step_s: float = 1.0,
    sent: int = 100,
    reshard: str = "never",
    error: str | None = None,
) -> dict[str, Any]:
    result = Measured(system, nodes, link_mbit, turns=[[Step(step_s, 1.0, sent, 1)]], error=error)
    if system.startswith("mics"):
        reshard = settings_of(system).get("reshard", reshard)
        strategy = BY_NODE if reshard == "by node" else Strategy(reshard)  # type: ignore[arg-type]
        asked = layout(2, 4, strategy=strategy)
        result.questions.append(Question(MODEL, CLUSTER, asked, workload(16)))
    return result.as_row()


def rows_at(
    nodes: str, link_mbit: float | None, without: str = "", **changes: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of all default systems, all alike but for `changes`, whose names have `_` for spaces."""
    named = {name.replace("_", " "): change for name, change in changes.items()}
    systems = default_systems(parse_layout(nodes), link_mbit)
    assert set(named) <= set(systems)
    return [
        row_of(name, nodes, link_mbit, **named.get(name, {})) for name in systems if name != without
    ]


def pair_of(name: str) -> set[str]:
    """The two systems of a goal."""
    ours, _, theirs = name.partition(" of ")[2].partition(" to ")
    return {ours, theirs.removeprefix("the fastest other, ").removesuffix(", the same layout")}


def judged(rows: list[dict[str, Any]]) -> dict[str, Goal]:
    return {goal.name.partition(": ")[2]: goal for goal in evaluate(rows)}


OF_BYTES = {
    f"bytes of {ours} to {DEFERRED}": 0.99 for ours in ("mics p={k}", "mics p=8", "mics auto")
}
OF_DEEPSPEED = {
    "speed of mics p=8 to deepspeed zero3": 1.0,
    "speed of mics p={k} to deepspeed mics": 1.0,
    "speed of mics p=8 to deepspeed mics p=8": 1.0,
    "speed of mics auto to deepspeed zero3": 1.0,
    "speed of mics auto to deepspeed mics": 1.0,
    "speed of mics auto to deepspeed mics p=8": 1.0,
}
OF_THE_FASTEST = {f"speed of mics auto to the fastest other, {FULL}": 0.95}
UNSHAPED = {
    f"speed of mics p={{k}} to {DEFERRED}": 0.99,
    f"speed of mics p={{k}} to {KEPT}, the same layout": 0.99,
    f"speed of {full_sharding(8)} to {FULL}, the same layout": 0.99,
}
WANTED = {
    ("4x2", 200.0): {
        f"speed of mics p={{k}} to {FULL}": 5.0,
        f"speed of mics p={{k}} to {DEFERRED}": 1.1,
        f"speed of mics p={{k}} to {KEPT}": None,
    }
    | OF_DEEPSPEED,
    ("2x4", 200.0): {f"speed of mics p=8 to {FULL}": 1.5} | OF_DEEPSPEED,
    ("4x2", 1000.0): OF_DEEPSPEED,
    ("2x4", 1000.0): OF_DEEPSPEED,
    ("4x2", None): UNSHAPED,
    ("2x4", None): UNSHAPED,
}


@pytest.mark.parametrize("place", WANTED)
def test_the_goals_and_their_numbers_are_these(place: tuple[str, float | None]) -> None:
    found = judged(rows_at(*place))
    expected = WANTED[place] | OF_BYTES | OF_THE_FASTEST
    size = place[0].split("x")[1]
    wanted = {name.replace("{k}", size): value for name, value in expected.items()}
    assert {name: goal.wanted for name, goal in found.items()} == wanted
    # All systems took the same time, so what asks for more than that is missed, and nothing else.
    assert {name for name, goal in found.items() if goal.is_missed} == {
        name for name, value in wanted.items() if value is not None and value > 1.0
    }


@pytest.mark.parametrize(("share", "is_reached"), [(1.001, True), (0.999, False)])
def test_a_goal_is_missed_just_below_its_number(share: float, is_reached: bool) -> None:
    found = judged(rows_at("4x2", 200.0, fsdp2_full={"step_s": 5.0 * share}))
    goal = found[f"speed of mics p=2 to {FULL}"]
    assert goal.is_reached is is_reached
    assert goal.is_missed is not is_reached
    assert Goal("a ratio of nothing", 0.95, math.nan).is_missed


@pytest.mark.parametrize("link_mbit", [200.0, 1000.0, None])
def test_a_planned_layout_that_sends_more_than_the_deferred_mesh_misses(
    link_mbit: float | None,
) -> None:
    found = judged(rows_at("4x2", link_mbit, **{"mics_p=8": {"sent": 108}}))
    reached = {name: goal.is_reached for name, goal in found.items() if name.startswith("bytes of")}
    assert reached == {
        f"bytes of mics p=2 to {DEFERRED}": True,
        f"bytes of mics p=8 to {DEFERRED}": False,
        f"bytes of mics auto to {DEFERRED}": True,
    }


def test_the_ratio_to_the_mesh_that_keeps_what_it_gathers_is_told_beside_the_goal() -> None:
    found = judged(rows_at("4x2", 200.0, fsdp2_2d_deferred_kept={"step_s": 0.97}))
    told = found[f"speed of mics p=2 to {KEPT}"]
    assert told.ratio == pytest.approx(0.97)
    assert told.as_json() == {
        "name": f"4x2, 200 Mbit/s: speed of mics p=2 to {KEPT}",
        "wanted": None,
        "ratio": told.ratio,
        "reached": None,
    }
    assert not told.is_missed


def test_unshaped_the_mesh_of_the_recorded_layout_is_compared() -> None:
    faster = {"fsdp2_2d_deferred_kept": {"step_s": 0.9}}
    found = judged(rows_at("4x2", None, **faster))
    assert found[f"speed of mics p=2 to {DEFERRED}"].is_reached
    assert found[f"speed of mics p=2 to {KEPT}, the same layout"].is_missed
    found = judged(rows_at("4x2", None, **faster, **{"mics_p=2": {"reshard": "always"}}))
    assert found[f"speed of mics p=2 to {DEFERRED}, the same layout"].is_reached
    assert f"speed of mics p=2 to {KEPT}, the same layout" not in found


def test_a_layout_that_no_peer_has_is_not_measured() -> None:
    found = judged(rows_at("4x2", None, **{"mics_p=2": {"reshard": "by node"}}))
    goal = found["speed of mics p=2 to FSDP2 of the same layout"]
    assert goal.is_missed
    assert goal.reason == "mics p=2 gathered and reduced by node, which no peer does"
    turns = rows_at("4x2", None)
    ours = next(row for row in turns if row["system"] == "mics p=2")
    other = row_of("mics p=2", "4x2", None, reshard="always")
    ours["predicted_from"] += other["predicted_from"]
    assert judged(turns)["speed of mics p=2 to FSDP2 of the same layout"].is_missed


def test_full_sharding_of_both_is_among_the_unshaped_systems_and_compared() -> None:
    ours = full_sharding(8)
    assert ours in default_systems(parse_layout("4x2"), None)
    assert ours not in default_systems(parse_layout("4x2"), 200.0)
    found = judged(rows_at("4x2", None, fsdp2_full={"step_s": 0.9}))
    assert found[f"speed of {ours} to {FULL}, the same layout"].is_missed


def test_on_shaped_links_every_deepspeed_variant_is_compared_with_its_like() -> None:
    found = judged(rows_at("4x2", 1000.0, **{"deepspeed_mics_p=8": {"step_s": 0.5}}))
    assert found["speed of mics p=8 to deepspeed mics p=8"].is_missed
    assert found["speed of mics auto to deepspeed mics p=8"].is_missed
    assert found["speed of mics p=2 to deepspeed mics"].is_reached


@pytest.mark.parametrize("place", WANTED)
def test_a_goal_whose_system_failed_or_was_not_run_is_missed_with_the_reason(
    place: tuple[str, float | None],
) -> None:
    everything = judged(rows_at(*place))
    for system in default_systems(parse_layout(place[0]), place[1]):
        compared = {name for name in everything if system in pair_of(name)}
        failed = rows_at(*place, **{system.replace(" ", "_"): {"error": "no memory"}})
        for rows, reason in (
            (failed, f"{system} failed: no memory"),
            (rows_at(*place, without=system), f"{system} was not run"),
        ):
            found = judged(rows)
            assert len(found) == len(everything)
            lost = {name: goal for name, goal in found.items() if goal.ratio is None}
            # Without a result the same layout and the fastest are not known, so names may change.
            assert not compared & (found.keys() - lost.keys())
            is_needed = system != full_sharding(8)
            assert any("the fastest other" in name for name in lost) is is_needed
            for name, goal in lost.items():
                assert goal.is_missed is (goal.wanted is not None), name
                assert goal.as_json()["not_measured"] == goal.reason == reason, name


def test_strict_fails_on_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, meta = tmp_path / "kept.json", tmp_path / "kept.meta.json"
    meta.write_text('{"date": "then", "goals": []}', encoding="utf-8")

    def judge(rows: list[dict[str, Any]], *options: str) -> int:
        results.write_text(json.dumps(rows), encoding="utf-8")
        command = ["network", "--judge", "--output", str(results), *options]
        monkeypatch.setattr(sys, "argv", command)
        return network.main()

    assert judge(rows_at("2x4", 1000.0), "--strict") == 0
    failed = rows_at("2x4", 1000.0, ddp={"error": "no memory"})
    assert judge(failed) == 0
    assert judge(failed, "--strict") == 1
    assert "not measured: ddp failed: no memory" in " ".join(capsys.readouterr().out.split())
    assert judge([], "--strict") == 1
    written = json.loads(meta.read_text(encoding="utf-8"))
    assert written == {"date": "then", "goals": []}


def test_strict_fails_where_nothing_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "reason_to_skip", lambda: "no root")
    for options, status in ([], 0), (["--strict"], 1):
        monkeypatch.setattr(sys, "argv", ["network", *options])
        assert network.main() == status


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_agrees_with_nothing(bad: float, place: int) -> None:
    losses = [1.0, 1.0, 1.0]
    losses[place] = bad
    results = [
        Measured(
            f"system {number}", "4x2", None, turns=[[Step(1.0, 1.0, 1, 1), Step(1.0, loss, 1, 1)]]
        )
        for number, loss in enumerate(losses)
    ]
    difference, words = largest_loss_difference(results)
    assert difference == math.inf
    assert words == f"step 1: {bad} by system {place}, turn 1"


def test_rows_keep_steps_and_predictions_by_turn() -> None:
    steps = [
        [Step(each, 1.0, 1, 1) for each in turn] for turn in ((9.0, 1.0, 2.0), (9.0, 3.0, 4.0))
    ]
    question = Question(MODEL, CLUSTER, layout(4, 2, strategy=BY_NODE), workload(16))
    result = Measured("mics p=8", "4x2", None, "", [question] * 2, num_warm_up=1, turns=steps)
    row = result.as_row()
    assert row["step_s_by_turn"] == [[1.0, 2.0], [3.0, 4.0]]
    assert row["predicted_step_s_by_turn"] == [question.answer().step_s] * 2


def test_the_readme_states_the_goals_of_the_benchmark() -> None:
    tables = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tables.py"))
    found = judged(rows_at(*tables["HELD_AT"]))
    assert found[f"speed of mics p=2 to {FULL}"].wanted == tables["GOAL_OVER_FULL"]
    assert found[f"speed of mics p=2 to {DEFERRED}"].wanted == tables["GOAL_OVER_DEFERRED"]
    said = " ".join(tables["network_table"]()[-5:])
    assert "goal 5" in said
    assert "goal 1.1" in said
    assert "which no goal is held against" in said


def test_the_readme_shows_every_system_that_is_run_over_all_links() -> None:
    tables = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tables.py"))
    for nodes, size in ("4x2", 2), ("2x4", 4):
        shown = {name.format(k=size) for name in tables["SYSTEMS"]}
        assert shown == set(default_systems(parse_layout(nodes), 200.0))


@pytest.mark.parametrize("name", ["4x2", "2x4"])
def test_predictions_are_held_against_at_least_eight_layouts(name: str) -> None:
    spec = parse_job_spec(
        {
            "name": "benchmark",
            "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 1},
            "data": {"kind": "tokens", "paths": [__file__]},
            "tokenizer": {"kind": "bytes"},
            "partition_size": 1,
            "training": {
                "sequence_length": 4,
                "global_batch_size": 32,
                "micro_batch_size": 1,
                "steps": 1,
                "optimizer": {"learning_rate": 1e-3},
            },
        }
    )
    layouts = set()
    for system in predicted_systems(parse_layout(name)):
        if not system.startswith("mics") or system == "mics auto":
            continue
        settings = settings_of(system)
        size = int(settings.pop("p"))
        job = _changed(spec, size, settings)
        training = job.training
        layouts.add(
            (
                size,
                job.engine.reshard,
                job.engine.accumulation,
                job.engine.hierarchical,
                training.micro_batch_size,
                training.activation_checkpointing,
            )
        )
    assert len(layouts) >= 8
    assert {each[1] for each in layouts} == {"auto", "always", "node"}
    assert {each[4] for each in layouts} == {1, 2}
    assert {each[5] for each in layouts} == {False, True}
