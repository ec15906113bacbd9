"""The texts of the command line: numbers, durations, sparklines, remaining time."""

from __future__ import annotations

import math

import pytest
from rich.console import Console
from scripted_job import ScriptedJob, example_spec

from mics_core.spec import parse_job_spec
from mics_core.spec.status import GroupState, JobState, RegroupEvent, RegroupPhases
from service.cli.board import job_board
from service.cli.progress import JobProgress
from service.cli.text import count, duration, event_sentence, number_list, rate, sparkline

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.123, "0.12"),
        (45.6, "46"),
        (999.7, "1k"),
        (45210.0, "45.2k"),
        (999_900.0, "1M"),
        (3_520_000.0, "3.52M"),
    ],
)
def test_rates_have_three_digits(value: float | None, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7260, "2 h 1 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_change_of_membership_says_what_its_phases_took() -> None:
    phases = RegroupPhases(detect_s=0.123, agree_s=0.05, connect_s=0.02, copy_s=None, redo_s=1.5)
    event = RegroupEvent(sequence=1, time=0, generation=3, reason="lost", step=8, phases=phases)
    assert event_sentence(event) == (
        "generation 3 took: detect 0.12 s, agree 0.05 s, connect 0.02 s, redo 1.50 s"
    )
    assert event_sentence(event.model_copy(update={"kept": 2 / 3})).endswith(
        "redo 1.50 s, 67 % of the step was kept"
    )
    assert event_sentence(event.model_copy(update={"overtook": [1, 2]})).endswith(
        "redo 1.50 s, overtook 1, 2"
    )


def test_runs_of_groups_are_joined() -> None:
    assert number_list([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert count(12800) == "12,800"


def test_a_sparkline_spans_from_least_to_most_and_leaves_out_what_is_no_number() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert sparkline([5, math.nan, 5], 8) == "▁▁"
    assert len(sparkline(list(range(1000)), 24)) == 24
    assert sparkline([], 24) == ""


def progress_of(num_groups: int, *, steps: int = 30) -> JobProgress:
    spec = example_spec(steps=100, maximum=num_groups) | {
        "groups": {"wanted": num_groups, "maximum": num_groups}
    }
    job = ScriptedJob("board", parse_job_spec(spec))
    job.join(*range(num_groups))
    job.set_state(JobState.RUNNING, "All groups train.")
    for _ in range(steps):
        job.commit_step(step_s=2.0 * num_groups)
    job.groups[0] = job.groups[0].model_copy(update={"slowness": 1.82})
    job.set_group(num_groups, GroupState.LOST, "Killed by signal 9.")
    progress = JobProgress(job.detail())
    for event in job.events:
        progress.take_event(event)
    return progress


def test_remaining_time_follows_the_last_steps() -> None:
    progress = progress_of(2)
    assert progress.remaining_s == pytest.approx(70 * 2.0, rel=0.1)
    progress.state = JobState.WAITING
    assert progress.remaining_s is None


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_board_of_64_groups_fits_the_width(width: int) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(job_board(progress_of(64)))
    lines = capture.get().splitlines()
    assert max(len(line) for line in lines) <= width
    text = " ".join(lines)
    assert text.count("member") >= 64
    assert text.count("1.8× slow") == 1
    assert "Killed by signal 9." in text
