"""Who computes what of a step that broke, and what its members tell each other of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.engine.in_hand import Division, as_doubles, from_doubles

pytestmark = pytest.mark.pure

QUICK = settings(max_examples=100, deadline=None, database=None)


def test_a_whole_step_is_divided_among_those_who_take_part() -> None:
    division = Division.of(7, num_members=4, active=[0, 1, 3])
    assert division.parts == division.left == ((0, 1, 2), (3, 4), (), (5, 6))


def test_what_members_have_in_hand_stays_theirs_and_the_rest_is_divided() -> None:
    # Member 1 is gone with 3 to 5; member 2, which has begun with them, had come to the second of
    # its own, and a newcomer listens.
    done = [frozenset({0, 1, 2}), frozenset({6}), frozenset(), frozenset()]
    division = Division.of(9, num_members=4, active=[0, 1, 2], done=done)
    assert division.left == ((3, 4), (5, 7), (8,), ())
    assert division.parts == ((0, 1, 2, 3, 4), (5, 6, 7), (8,), ())


def test_a_member_that_lacks_nothing_has_nothing_left() -> None:
    division = Division.of(4, 2, [0, 1], [frozenset({0, 1, 2}), frozenset()])
    assert division.left == ((3,), ())
    assert division.parts == ((0, 1, 2, 3), ())


def test_where_less_is_left_than_members_some_have_no_part() -> None:
    division = Division.of(3, 3, [0, 1, 2], [frozenset({0, 1}), frozenset(), frozenset()])
    assert division.left == ((2,), (), ())
    assert division.parts == ((0, 1, 2), (), ())


@QUICK
@given(st.integers(1, 200), st.data())
def test_micro_batches_travel_as_doubles(num_micro_batches: int, data: st.DataObject) -> None:
    chosen = data.draw(st.frozensets(st.integers(0, num_micro_batches - 1)))
    words = as_doubles(chosen, num_micro_batches)
    assert from_doubles(words) == chosen
    assert len(words) == len(as_doubles((), num_micro_batches)), "all members send as many"
    assert all(float(int(word)) == word < 2**53 for word in words)
