"""How slow a group is, from the steps that all groups commit together."""

from __future__ import annotations

import pickle

import pytest

from mics_core.cluster.messages import Committed
from mics_core.cluster.pace import Pace, slowness_of
from mics_core.engine.summary import Share, StepCommit

pytestmark = pytest.mark.pure


def committed(
    step_s: float, waited_s: float, *shares: int, step: int = 0, generation: int = 1
) -> Committed:
    """What a group says of a step of `step_s`, of which it waited `waited_s` for the others."""
    commit = StepCommit(
        step=step,
        loss=1.0,
        num_tokens=1,
        gradient_norm=1.0,
        learning_rate=0.1,
        generation=generation,
        num_groups=len(shares),
        shares=tuple(Share((range(share),)) for share in shares),
        pending_generation=generation,
        checkpoint=0.0,
        up_to_date=(),
        waited_across_s=waited_s,
    )
    return Committed(commit, step_s, step_s, 0.0)


def pace_of(place: int, *messages: Committed) -> float | None:
    pace = Pace()
    for message in messages:
        pace.take_in(message, place)
    return pace.sample_s


def test_a_pace_leaves_out_the_wait_and_the_first_step_of_a_generation() -> None:
    first, second = committed(9.0, 0.0, 4, 4), committed(2.0, 1.2, 4, 4)
    assert pace_of(0, first) is None
    assert pace_of(0, first, second) == pytest.approx(0.2)
    later = committed(5.0, 0.0, 8, generation=2)
    assert pace_of(0, first, second, later) is None


def test_a_group_with_more_samples_is_not_slow_for_that() -> None:
    steps = [committed(2.0, 0.0, 4, 2, 2)] * 2, [committed(2.0, 1.0, 4, 2, 2)] * 2
    assert pace_of(0, *steps[0]) == pace_of(1, *steps[1]) == 0.5


def test_one_long_step_is_no_pace_and_one_without_samples_neither() -> None:
    usual, long = committed(2.0, 0.0, 4), committed(60.0, 0.0, 4)
    assert pace_of(0, usual, usual, long, usual) == 0.5
    assert pace_of(1, *[committed(2.0, 1.9, 4, 0)] * 5) is None


def test_slowness_is_told_against_the_other_groups() -> None:
    assert slowness_of({0: 0.1, 1: 0.1, 2: 0.2, 3: None}) == {
        0: pytest.approx(0.1 / 0.15),
        1: pytest.approx(0.1 / 0.15),
        2: pytest.approx(2.0),
    }
    assert slowness_of({0: 0.1, 1: 0.2}) == {0: 0.5, 1: 2.0}
    assert slowness_of({0: 0.1, 1: None}) == {}


def test_a_supervisor_that_follows_one_that_died_begins_anew() -> None:
    pace = Pace()
    for _ in range(3):
        pace.take_in(committed(2.0, 0.0, 4), 0)
    assert pickle.loads(pickle.dumps(pace)).sample_s is None
