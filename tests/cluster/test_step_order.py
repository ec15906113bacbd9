"""Reports of committed steps come from several groups, each at its own pace."""

from __future__ import annotations

import pytest

from mics_core.cluster.step_order import StepOrder

pytestmark = pytest.mark.pure


@pytest.fixture
def order() -> StepOrder[str]:
    return StepOrder(patience_s=2.0)


def test_a_step_waits_for_the_report_of_the_step_before_it(order: StepOrder[str]) -> None:
    assert order.take(0, 1, "0", now=0.0) == ["0"]
    assert order.take(2, 2, "2", now=0.1) == []
    assert order.take(3, 2, "3", now=0.2) == []
    assert order.take(1, 1, "1", now=0.3) == ["1", "2", "3"]
    assert order.overdue(now=9.0) == []


def test_repeated_reports_are_given_on(order: StepOrder[str]) -> None:
    assert order.take(0, 1, "group 0", now=0.0) == ["group 0"]
    assert order.take(0, 1, "group 1", now=0.1) == ["group 1"]


def test_a_report_that_was_lost_with_its_group_is_waited_for_a_while_only(
    order: StepOrder[str],
) -> None:
    order.take(2, 1, "2", now=1.0)
    order.take(1, 1, "1", now=2.9)
    assert order.overdue(now=2.9) == []
    assert order.overdue(now=3.0) == ["1", "2"]
    assert order.take(3, 1, "3", now=3.1) == ["3"]


def test_after_a_rewind_the_steps_of_older_generations_are_void(order: StepOrder[str]) -> None:
    for step in range(3):
        order.take(step, 1, f"old {step}", now=0.0)
    order.take(4, 1, "old 4", now=0.0)
    order.begin(step=1, generation=2)
    assert order.take(1, 1, "old 1 again", now=0.1) == []
    assert order.take(2, 1, "old 2 again", now=0.1) == []
    assert order.take(1, 2, "new 1", now=0.2) == ["new 1"]
    assert order.take(2, 2, "new 2", now=0.3) == ["new 2"]
    assert order.rest() == []


def test_a_run_that_resumes_begins_at_its_step(order: StepOrder[str]) -> None:
    order.begin(step=100, generation=1)
    assert order.take(100, 1, "100", now=0.0) == ["100"]
