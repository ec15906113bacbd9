"""Which announcements tell members that the step under way cannot be committed."""

from __future__ import annotations

import pytest

from mics_core.elastic.plan import GenerationPlan, has_lost_member

pytestmark = pytest.mark.pure


def plans_of(*groups: tuple[int, ...]) -> dict[int, GenerationPlan]:
    return {
        number: GenerationPlan(number, members, None, "A test wants it.")
        for number, members in enumerate(groups, 1)
    }


@pytest.mark.parametrize(
    ("entered", "gone", "is_lost"),
    [
        pytest.param(1, {2}, False, id="a newcomer was lost before anybody entered with it"),
        pytest.param(1, {1}, True, id="a member was lost while newcomers were announced"),
        pytest.param(1, {1, 2}, True, id="both were"),
        pytest.param(2, {2}, True, id="a newcomer was lost after others had entered with it"),
        pytest.param(3, {2}, False, id="it was lost before the newest one"),
        pytest.param(0, {0, 1, 2}, False, id="nobody has entered any"),
    ],
)
def test_a_step_is_lost_with_a_member_of_the_generation_that_runs_it(
    entered: int, gone: set[int], is_lost: bool
) -> None:
    plans = plans_of((0, 1), (0, 1, 2), (0, 1))
    assert has_lost_member(plans, entered, lambda group: group not in gone) is is_lost
