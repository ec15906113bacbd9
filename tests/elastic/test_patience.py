"""How long a step may take before somebody is taken for silent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mics_core.elastic.patience import Patience

pytestmark = pytest.mark.pure


def test_nothing_is_foretold_of_the_first_step_after_a_change() -> None:
    patience = Patience(2.0, 120.0)
    assert patience.limit_s == 120.0
    patience.took(60.0)  # compiling, say; no measure of what follows
    assert patience.limit_s == 120.0
    patience.took(1.0)
    assert patience.limit_s == 5.0
    patience.begins(1, with_newcomer=True)
    assert patience.limit_s == 120.0


def test_the_limit_follows_the_last_steps() -> None:
    patience = Patience(2.0, 120.0)
    for step_s in (9.0, 1.0, 4.0, *[1.0] * 8):
        patience.took(step_s)
    assert patience.limit_s == 8.0  # twice the one that took 4 s
    for _ in range(3):
        patience.took(1.0)
    assert patience.limit_s == 5.0  # five times the usual one


def test_after_a_loss_the_limit_follows_the_larger_shares() -> None:
    patience = Patience(2.0, 120.0)
    patience.begins(2, with_newcomer=True)
    for _ in range(3):
        patience.took(1.0)
    for _ in range(4):  # the generations with fewer may break too, and nothing is counted twice
        patience.begins(6, with_newcomer=False)
        assert patience.limit_s == 15.0
    patience.took(3.0)
    assert patience.limit_s == 15.0
    patience.begins(2, with_newcomer=False)
    assert patience.limit_s == pytest.approx(5.0)


def test_a_newcomer_that_is_lost_in_its_first_step_leaves_no_long_limit_behind() -> None:
    patience = Patience(2.0, 120.0)
    patience.begins(2, with_newcomer=False)
    for _ in range(3):
        patience.took(1.0)
    patience.begins(1, with_newcomer=True)
    assert patience.limit_s == 120.0
    patience.begins(2, with_newcomer=False)
    assert patience.limit_s == 5.0


def test_a_loss_before_anything_is_known_of_a_step_foretells_nothing() -> None:
    patience = Patience(2.0, 120.0)
    patience.took(60.0)
    patience.begins(2, with_newcomer=False)
    assert patience.limit_s == 120.0


def test_a_step_that_goes_on_after_a_loss_says_nothing_of_whole_ones() -> None:
    patience = Patience(2.0, 120.0)
    patience.took(60.0)
    patience.begins(2, with_newcomer=False)
    patience.took(0.2, is_whole=False)
    assert patience.limit_s == 120.0, "a whole one was not seen yet"
    patience.took(8.0)
    assert patience.limit_s == 40.0


@given(
    st.floats(0.1, 100),
    st.floats(0.1, 1000),
    st.lists(
        st.one_of(st.tuples(st.integers(1, 64), st.booleans()), st.floats(0, 1e4)), max_size=30
    ),
)
def test_the_limit_stays_between_floor_and_ceiling(
    floor_s: float, ceiling_s: float, events: list[tuple[int, bool] | float]
) -> None:
    patience = Patience(floor_s, ceiling_s)
    for event in events:
        if isinstance(event, tuple):
            patience.begins(event[0], with_newcomer=event[1])
        else:
            patience.took(event)
        assert floor_s <= patience.limit_s <= max(floor_s, ceiling_s)


def test_who_computes_nothing_yet_waits_for_the_whole_step_of_the_others() -> None:
    patience = Patience(2.0, 120.0)
    patience.heard(200.0)
    assert patience.limit_s == patience.ceiling_s == 1000.0
    for _ in range(3):
        patience.took(200.0)
    assert patience.limit_s == 1000.0
    patience.heard(1.0)
    assert patience.limit_s == patience.ceiling_s == 120.0
