"""What the recovery benchmark makes of commits and events."""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("ray")

from benchmarks.harness.output import read_facts
from benchmarks.recovery import __main__ as recovery
from benchmarks.recovery.commits import Change, cost_of_change, cost_of_loss
from benchmarks.recovery.history import History
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome, extra_of, usual_step_s
from benchmarks.recovery.report import build_row
from benchmarks.recovery.shots import Report, Shots
from benchmarks.recovery.steps import StepLine
from mics_core.spec.status import GenerationRecord, RegroupPhases, StepRecord

USUAL, BEGAN = 0.4, 1000.0
USUAL_OF_TWO, USUAL_OF_FOUR = 0.6, 0.3
MANY = NORMAL_STEPS + 5
REQUESTED = BEGAN + MANY * USUAL + 0.1
"""In the middle of the step after the first `MANY`."""


def steps_of(
    *runs: tuple[int, int, list[float]], first_step: int = 0, began: float = BEGAN
) -> list[StepRecord]:
    """Steps of generations: its number, its groups with a share, and the seconds of each step."""
    flat = [(number, groups, took) for number, groups, times in runs for took in times]
    ends = list(accumulate((took for _, _, took in flat), initial=began))[1:]
    return [
        StepRecord(
            step=first_step + index,
            time=end,
            loss=1.0,
            tokens=1,
            samples=1,
            step_s=0.0,  # as a newcomer tells it that has seen no commit before
            tokens_per_s=0.0,
            gradient_norm=1.0,
            learning_rate=1.0,
            generation=number,
            num_groups=groups,
        )
        for index, ((number, groups, _), end) in enumerate(zip(flat, ends, strict=True))
    ]


def phases(redo_s: float | None = None) -> RegroupPhases:
    detect_s = None if redo_s is None else 0.05
    return RegroupPhases(detect_s=detect_s, agree_s=0.1, connect_s=0.0, copy_s=None, redo_s=redo_s)


def entered(number: int, announced: float = REQUESTED) -> GenerationRecord:
    return GenerationRecord(number=number, groups=[0], reason="", step=0, time=announced)


def first_of(steps: list[StepRecord], num_groups: int) -> StepRecord:
    return next(step for step in steps if step.num_groups == num_groups)


def test_a_drain_is_told_in_steps_before_it_with_connecting_and_without_capacity() -> None:
    steps = steps_of(
        (1, 3, [USUAL] * MANY),
        (1, 3, [USUAL, USUAL + 0.08]),
        (2, 2, [USUAL_OF_TWO + 0.04, *[USUAL_OF_TWO] * NORMAL_STEPS, *[USUAL] * 50]),
    )
    history = History(steps, [entered(1), entered(2)], {2: phases()})
    outcome = history.cost_of_change(REQUESTED, REQUESTED, first_of(steps, 2))
    assert outcome.stall_s == pytest.approx(0.12)
    assert outcome.extra_step_ratio == pytest.approx(0.12 / USUAL)
    assert outcome.with_capacity_ratio == pytest.approx((0.12 + USUAL_OF_TWO - USUAL) / USUAL)
    assert outcome.steps_redone == 0
    assert outcome.phases is not None
    assert outcome.phases["normal_step_s"] == pytest.approx(USUAL)


def test_a_join_counts_from_the_announcement_of_the_newcomer() -> None:
    steps = steps_of(
        (1, 3, [USUAL] * MANY),
        (1, 3, [USUAL + 0.02]),  # connecting beside it
        (2, 3, [USUAL + 0.03, USUAL + 0.01]),  # the newcomer listens
        (2, 4, [USUAL_OF_FOUR + 0.02, *[USUAL_OF_FOUR] * NORMAL_STEPS]),
    )
    history = History(steps, [entered(1), entered(2)], {2: phases()})
    first = first_of(steps, 4)
    outcome = history.cost_of_change(REQUESTED, history.announced(2), first, until_s=9.0)
    assert outcome.extra_step_ratio == pytest.approx(0.08 / USUAL)
    assert outcome.until_contribution_s == 9.0
    # That four groups are faster is no gain of the change.
    assert outcome.with_capacity_ratio is not None
    assert outcome.with_capacity_ratio < 0


def test_a_change_that_costs_nothing_adds_nothing() -> None:
    steps = steps_of((1, 3, [USUAL] * MANY), (1, 3, [USUAL]), (2, 3, [USUAL] * MANY))
    history = History(steps, [entered(1), entered(2)], {2: phases()})
    first = next(step for step in steps if step.generation == 2)
    outcome = history.cost_of_change(REQUESTED, REQUESTED, first)
    assert outcome.extra_step_ratio == pytest.approx(0.0)
    assert outcome.stall_s == pytest.approx(0.0)
    assert outcome.steps_redone == 0


def test_a_loss_is_measured_from_its_time_to_the_commit_of_the_survivors() -> None:
    steps = steps_of((1, 3, [USUAL] * MANY), (2, 2, [1.0, *[USUAL_OF_TWO] * 5]))
    history = History(steps, [entered(1), entered(2)], {2: phases(redo_s=0.6)})
    outcome = history.cost_of_loss(REQUESTED, first_of(steps, 2))
    assert outcome.stall_s == pytest.approx(1.0 - 0.1 - USUAL)
    assert outcome.extra_step_ratio == pytest.approx(1.0 / USUAL - 1.0)
    assert outcome.steps_redone == 1
    assert outcome.with_capacity_ratio is None


def test_steps_done_again_are_those_that_the_events_tell_of() -> None:
    before = steps_of((1, 3, [USUAL] * MANY))

    def redone(steps: list[StepRecord], *numbers: int, redo_s: float | None = 0.6) -> int:
        first = steps[0]
        told = {1: phases(), first.generation: phases(redo_s)}
        history = History([*before, *steps], [entered(each) for each in (1, *numbers)], told)
        return history.steps_redone(first)

    def after(generation: int, first_step: int = MANY) -> list[StepRecord]:
        return steps_of((generation, 2, [1.0]), first_step=first_step, began=before[-1].time)

    assert redone(after(2), 2) == 1
    # A change that broke no step, or none that was begun.
    assert redone(after(2), 2, redo_s=None) == 0
    # A second loss broke the first attempt to do the step again.
    assert redone(after(3), 2, 3) == 2
    # A generation that nobody entered was no attempt.
    assert redone(after(3), 3) == 1
    # All were lost, and the run went on from a checkpoint of four steps before.
    assert redone(after(2, first_step=MANY - 4), 2) == 5


def lines_of(steps: list[int], times: list[float], num_workers: int = 6) -> list[StepLine]:
    return [
        StepLine("0", 0, 1, 1, step, num_workers, 0.0, time)
        for step, time in zip(steps, times, strict=True)
    ]


def test_a_peer_is_measured_in_the_same_way() -> None:
    times = [BEGAN + USUAL * index for index in range(MANY)]
    before = lines_of(list(range(MANY)), times)
    ends = [times[-1] + USUAL, times[-1] + 2 * USUAL + 5.0]
    change = Change(before, lines_of([MANY, MANY + 1], ends, 4))
    outcome = cost_of_change(change, before_s=USUAL, after_s=USUAL)
    assert outcome.extra_step_ratio == pytest.approx(5.0 / USUAL)
    assert outcome.stall_s == pytest.approx(5.0)
    assert outcome.steps_redone == 0


def test_a_restart_from_a_checkpoint_does_again_what_was_committed_since() -> None:
    times = [BEGAN + USUAL * index for index in range(MANY)]
    before = lines_of(list(range(MANY)), times)
    # Two more steps, and then a restart at the step three before.
    after = lines_of([MANY, MANY + 1, MANY - 1], [times[-1] + each for each in (0.4, 0.8, 20.0)])
    assert Change(before, after, is_under_way=True).steps_redone == 3 + 1
    assert Change(before, after[:1]).steps_redone == 0
    assert Change(before, after[:1], num_discarded=2).steps_redone == 2
    lost = Change(before, lines_of([MANY - 1], [times[-1] + 9.0]), is_under_way=True)
    assert cost_of_loss(lost, times[-1] + 0.1).stall_s == pytest.approx(8.9 - USUAL)
    assert lost.steps_redone == 2


def test_the_usual_step_is_of_the_last_commits_alone() -> None:
    times = list(accumulate([9.0] * 30 + [USUAL] * NORMAL_STEPS, initial=0.0))
    assert usual_step_s(times) == pytest.approx(USUAL)


def test_what_is_added_is_never_less_for_a_longer_step_after() -> None:
    extra = extra_of([0.0, 0.4, 0.8, 1.5], before_s=0.4, after_s=0.6)
    assert extra.extra_s == pytest.approx(0.1)
    assert extra.ratio == pytest.approx(0.25)


def test_a_row_has_what_a_change_added_with_capacity_beside_what_it_added() -> None:
    outcomes = [Outcome(0.1, 0, 0.2, 9.0, with_capacity_ratio=0.6), Outcome(0.2, 1, 0.4, 7.0)]
    row = build_row("ours", "group drained", outcomes)
    assert row["extra_step_ratio_median"] == pytest.approx(0.3)
    assert row["extra_with_capacity_ratio_median"] == 0.6
    assert row["steps_redone"] == 1
    assert "extra_with_capacity_ratio_median" not in build_row("ours", "x", [Outcome(0.1, 1, 0.2)])


def test_a_newcomer_that_slows_the_members_while_it_starts_makes_no_usual_step() -> None:
    steps = steps_of(
        (1, 3, [USUAL] * MANY),
        (1, 3, [2 * USUAL] * MANY),  # beside its start
        (2, 3, [USUAL + 0.03]),
        (2, 4, [USUAL_OF_FOUR] * (NORMAL_STEPS + 1)),
    )
    announced = steps[2 * MANY - 1].time
    history = History(steps, [entered(1), entered(2, announced)], {2: phases()})
    outcome = history.cost_of_change(REQUESTED, announced, first_of(steps, 4))
    assert outcome.extra_step_ratio == pytest.approx(0.03 / USUAL)


def test_a_run_of_one_system_keeps_the_others_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "recovery.json"

    def run(name: str, stall_s: float, *words: str) -> list[tuple[str, float]]:
        def inflict(shots: Shots, report: Report) -> None:
            shots.inflict(lambda _: Outcome(stall_s, 1, 0.0), report)

        system = recovery._System(recovery._SYSTEMS[name].title, inflict)
        monkeypatch.setitem(recovery._SYSTEMS, name, system)
        command = ["recovery", "--systems", name, "--faults", "node killed", "--output"]
        monkeypatch.setattr(sys, "argv", [*command, str(output), *words])
        recovery.main()
        rows = json.loads(output.read_text(encoding="utf-8"))
        return [(row["system"], row["stall_s_median"]) for row in rows]

    assert run("ours", 0.3) == [("mics-elastic", 0.3)]
    first = read_facts(output)
    assert run("torchft", 4.7, "--keep") == [("mics-elastic", 0.3), ("torchft", 4.7)]
    assert run("torchft", 4.8, "--keep") == [("mics-elastic", 0.3), ("torchft", 4.8)]
    facts = read_facts(output)
    assert facts["kept"] == {
        "mics-elastic": {key: first[key] for key in ("command", "commit", "date")}
    }
    assert len(facts["outcomes"]["mics-elastic"]["node killed"]) == 10
    assert run("torchft", 4.9) == [("torchft", 4.9)]
