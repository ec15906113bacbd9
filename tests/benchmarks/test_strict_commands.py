"""The commands of the benchmarks from what they measured on: results, goals and exit status."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray")

from benchmarks import checkpoint, churn, join, steady
from benchmarks.churn import Churned, Turn
from benchmarks.harness.messages import Block
from benchmarks.recovery import __main__ as recovery
from benchmarks.recovery.goals import OURS
from benchmarks.recovery.outcome import Outcome
from benchmarks.recovery.shots import Report, Shots

Patch = pytest.MonkeyPatch


def patch_steady(patch: Patch, ratio: float) -> None:
    blocks = {
        way: Block([step * took for step in range(20)], [1.0] * 20, took)
        for way, took in ((steady.FIXED, 1.0), (steady.ELASTIC, ratio))
    }
    patch.setattr(steady, "_supervised", lambda _: nullcontext({}))
    patch.setattr(steady, "WorldFactory", lambda *_: nullcontext())
    patch.setattr(steady, "_measure", lambda *_: [*blocks.items()] * 2)


def patch_checkpoint(patch: Patch, ratio: float) -> None:
    patch.setattr(checkpoint, "_step_s", lambda _, folder, __: 1.0 if folder is None else ratio)
    patch.setattr(checkpoint, "_newest", lambda folder: folder)


def patch_churn(patch: Patch, ratio: float) -> None:
    steps: Any = [
        SimpleNamespace(loss=1.0, num_groups=3, generation=1, time=float(step))
        for step in range(40)
    ]
    samples = SimpleNamespace(due=12, used=12, repeated=0)
    course, journal = SimpleNamespace(samples=samples), SimpleNamespace(_events=[])
    run: Any = SimpleNamespace(steps=steps, course=course, journal=journal)
    turns = [(Turn(steps, 40 * ratio), 1.0)]
    churned = Churned(turns, Counter({"group killed": 1}), run, [1.0] * 40)
    patch.setattr(churn, "_churn", lambda *_: churned)
    patch.setattr(churn, "_undisturbed", lambda *_: {1: [3.0], 2: [1.5], 3: [1.0]})
    patch.setattr(churn, "_losses_without_faults", lambda *_: [1.0] * 40)


def patch_join(patch: Patch, ratio: float) -> None:
    def run(_factory: Any, _spec: Any, system: str, *_: Any) -> tuple[list[Any], list[int]]:
        times = [1.0] * 18
        times[8] = 1.0 + 5 * (ratio - 1.0)
        shares = [3] * 9 + [4] * 9
        return [SimpleNamespace(step_s=took, loss=1.0) for took in times], shares

    patch.setattr(join, "reason_to_skip", lambda: None)
    network = SimpleNamespace(nodes=[], shape=lambda _: None)
    patch.setattr(join, "EmulatedNetwork", lambda _: nullcontext(network))
    patch.setattr(join, "WorldFactory", lambda *_: nullcontext())
    patch.setattr(join, "_run", run)
    patch.setattr(join, "_parse", with_one_setting(join._parse))


def with_one_setting(parse: Callable[[], Any]) -> Callable[[], Any]:
    def parsed() -> Any:
        options = parse()
        options.nodes, options.forward_s = [4], [0.1]
        return options

    return parsed


def patch_recovery(patch: Patch, ratio: float) -> None:
    def run(shots: Shots, report: Report) -> None:
        shots.inflict(lambda _: Outcome(10 * (ratio - 1.0), 1, 0.0), report)

    system = recovery._System(OURS, run)
    patch.setattr(recovery, "_SYSTEMS", {"ours": system})


BENCHMARKS = {
    "steady": (steady, patch_steady),
    "checkpoint": (checkpoint, patch_checkpoint),
    "churn": (churn, patch_churn),
    "join": (join, patch_join),
    "recovery": (recovery, patch_recovery),
}


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize(
    ("ratio", "options", "status"),
    [(1.001, ["--strict"], 0), (1.06, [], 0), (1.06, ["--strict"], 1)],
)
def test_one_out_of_reach_fails_the_command_where_that_is_asked_for(
    name: str,
    ratio: float,
    options: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module: ModuleType
    module, patch = BENCHMARKS[name]
    patch(monkeypatch, ratio)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module, "write_tokens", lambda folder: folder / "tokens.npy")
    monkeypatch.setenv("PYTHONPATH", "")
    output = tmp_path / f"{name}.json"
    monkeypatch.setattr(sys, "argv", [name, "--output", str(output), *options])
    assert module.main() == status
    goals = json.loads(output.with_suffix(".meta.json").read_text(encoding="utf-8"))["goals"]
    is_missed = ratio > 1.01
    num_missed = [goal["reached"] for goal in goals].count(False)
    # Killed workers and killed groups have the same limit.
    assert num_missed == is_missed * (2 if name == "recovery" else 1)
    assert ("missed" in capsys.readouterr().out) == is_missed
    assert json.loads(output.read_text(encoding="utf-8"))
