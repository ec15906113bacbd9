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
    patience.began_anew()
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
    for _ in range(3):
        patience.took(1.0)
    patience.shares_changed(3.0)
    assert patience.limit_s == 15.0
    patience.took(3.0)
    assert patience.limit_s == 15.0
    patience.shares_changed(1 / 3)
    assert patience.limit_s == pytest.approx(5.0)


def test_a_loss_before_anything_is_known_of_a_step_foretells_nothing() -> None:
    patience = Patience(2.0, 120.0)
    patience.took(60.0)
    patience.shares_changed(2.0)
    assert patience.limit_s == 120.0


@given(
    st.floats(0.1, 100),
    st.floats(0.1, 1000),
    st.lists(st.one_of(st.none(), st.floats(0, 1e4)), max_size=30),
)
def test_the_limit_stays_between_floor_and_ceiling(
    floor_s: float, ceiling_s: float, steps: list[float | None]
) -> None:
    patience = Patience(floor_s, ceiling_s)
    for step_s in steps:
        if step_s is None:
            patience.began_anew()
        else:
            patience.took(step_s)
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
