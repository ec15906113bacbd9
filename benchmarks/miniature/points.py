"""Faults declared in advance: a worker kills itself at a step and in a phase of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mics_core.comm import units
from mics_core.comm.copies import Copies
from mics_core.comm.partition import PartitionGroup
from mics_core.comm.replication import ReplicationGroup
from mics_core.engine import preparing
from mics_core.engine.part_writing import Background
from mics_core.engine.second_hop import SecondHop
from mics_core.engine.trainer import Trainer

PHASES = (
    "forward",
    "reduce-scatter",
    "second hop",
    "after the second hop",
    "vote",
    "regroup",
    "assembling",
    "after regrouping",
    "copy out",
    "copy in",
    "checkpoint",
)


@dataclass(frozen=True)
class FailAt:
    """A worker dies as if its process were killed from outside.

    Args:
        group: Its partition group.
        rank: Its rank there.
        step: The step during which it dies, or at the earliest.
        phase: One of `PHASES`.
    """

    group: int
    rank: int
    step: int
    phase: str


def arm(faults: Sequence[FailAt]) -> None:
    """Have this process die at the points declared for it."""
    for fault in faults:
        _ARMED[fault.phase](_At(fault.step))


class _At:
    """Knows the step that runs, and ends the process when it is due."""

    def __init__(self, step: int):
        self.step = step
        self.now = -1
        run_step = Trainer.run_step

        def noted(trainer: Trainer, step: int, *arguments: Any, **options: Any) -> Any:
            self.now = step
            return run_step(trainer, step, *arguments, **options)

        Trainer.run_step = noted  # type: ignore[method-assign]

    def before(self, owner: Any, name: str, *, calls: int = 1) -> None:
        """Die instead of a function's `calls`-th call of the step, or of a later one."""
        self._replace(owner, name, calls, before=True)

    def after(self, owner: Any, name: str) -> None:
        """Die after a function has done its work."""
        self._replace(owner, name, 1, before=False)

    def _replace(self, owner: Any, name: str, calls: int, *, before: bool) -> None:
        function, left = getattr(owner, name), [calls]

        def call(*arguments: Any, **options: Any) -> Any:
            is_due = self.now >= self.step
            left[0] -= is_due
            if is_due and left[0] == 0 and before:
                _die()
            result = function(*arguments, **options)
            if is_due and left[0] == 0:
                _die()
            return result

        setattr(owner, name, call)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


_ARMED: dict[str, Callable[[_At], None]] = {
    "forward": lambda at: at.before(Trainer, "_loss", calls=2),
    "reduce-scatter": lambda at: at.before(units, "scatter_flat", calls=2),
    # Of several buckets: the others have some of them whole, and some not.
    "second hop": lambda at: at.before(ReplicationGroup, "run_stage", calls=5),
    # The others may commit the step; this group cannot.
    "after the second hop": lambda at: at.after(SecondHop, "finish"),
    "vote": lambda at: at.after(PartitionGroup, "gather_doubles"),
    "regroup": lambda at: at.before(preparing, "connect"),
    "assembling": lambda at: at.before(ReplicationGroup, "assemble"),
    "after regrouping": lambda at: at.after(ReplicationGroup, "assemble"),
    "copy out": lambda at: at.before(Copies, "send", calls=2),
    "copy in": lambda at: at.after(Copies, "receive"),
    "checkpoint": lambda at: at.after(Background, "submit"),
}
