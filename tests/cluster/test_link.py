"""What a worker's link tells the supervisor of the time of its steps."""

from __future__ import annotations

from typing import Any

import pytest

from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Committed
from mics_core.engine.summary import Share, StepCommit


class Supervisor:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> None:
        if method == "report":
            self.told += arguments[1]


def commit(step: int) -> StepCommit:
    return StepCommit(
        step=step,
        loss=1.0,
        num_tokens=8,
        gradient_norm=1.0,
        learning_rate=1e-3,
        generation=2,
        num_groups=3,
        shares=(Share(0, 8),),
        pending_generation=2,
        checkpoint=0.0,
        up_to_date=(0, 1, 2),
    )


def test_the_first_step_of_a_newcomer_took_as_long_as_it_ran() -> None:
    supervisor = Supervisor()
    link = SupervisorLink(supervisor, 3, 0)  # type: ignore[arg-type]
    # It still copies the states: nothing was entered.
    link.committed(commit(7), 0.5)
    link.committed(commit(8), 100.0)
    link._threads[1].start()
    link.close()
    first, second = (told for told in supervisor.told if isinstance(told, Committed))
    assert first.step_s == pytest.approx(0.5)
    assert 0 < second.step_s < 5.0, "from commit to commit, whatever else happens between"
