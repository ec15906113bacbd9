"""Faults declared in advance: what befalls a worker at a step and in a phase of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem

from mics_core.comm import units
from mics_core.comm.copies import Copies
from mics_core.comm.replication import ReplicationGroup
from mics_core.engine import preparing, trainer
from mics_core.engine.part_writing import Background
from mics_core.engine.second_hop import SecondHop
from mics_core.engine.trainer import Trainer
from mics_core.errors import ReplicationError
from mics_core.spec.folders import CheckpointFolder

PHASES = (
    "forward",
    "reduce-scatter",
    "second hop",
    "longer second hop",
    "ordered second hop",
    "reading",
    "after the second hop",
    "vote",
    "regroup",
    "assembling",
    "after regrouping",
    "copy out",
    "copy in",
    "checkpoint",
    "half a file",
    "before its record",
    "before it is visible",
    "after it is visible",
)


@dataclass(frozen=True)
class FailAt:
    """A worker dies as if its process were killed from outside, or is stopped.

    In one phase, the "longer second hop", it lives: its hop fails if another worker dies in that
    step, where everybody else's hop is done.

    Args:
        group: Its partition group.
        rank: Its rank there.
        step: The step during which it dies, or at the earliest.
        phase: One of `PHASES`.
        stops: Whether it is stopped (SIGSTOP) and keeps its connections, rather than killed.
    """

    group: int
    rank: int
    step: int
    phase: str
    stops: bool = False


def _always(_: FailAt) -> bool:
    return True


def arm(faults: Sequence[FailAt], befalls: Callable[[FailAt], bool] = _always) -> None:
    """Have the faults declared for this process befall it.

    Args:
        faults: The faults.
        befalls: Called where one is due, and where a "longer second hop" has broken; a worker only
            dies, or is stopped, if it says so.
    """
    for fault in faults:
        _ARMED[fault.phase](_At(fault, befalls))


class _At:
    """Knows the step that runs, and ends the process when it is due."""

    def __init__(self, fault: FailAt, befalls: Callable[[FailAt], bool]):
        self.step = fault.step
        self._fault = fault
        self._befalls = befalls
        self._signal = signal.SIGSTOP if fault.stops else signal.SIGKILL
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

    def lengthen_second_hop(self) -> None:
        """Give this worker's second hop of the step one all-reduce more than all others have.

        It breaks, as a real one does, as soon as a member that has to take part in it dies.
        """
        finish = SecondHop.finish

        def longer(hop: SecondHop) -> tuple[list[list[float]], str]:
            replication = hop._replication
            assert replication is not None
            rows, error = finish(hop)
            try:
                if self.now == self.step and not error:
                    replication.all_reduce(torch.zeros(1))
            except ReplicationError as broken:
                error = str(broken)
                self._befalls(self._fault)
            return rows, error

        SecondHop.finish = longer  # type: ignore[method-assign]

    def _replace(self, owner: Any, name: str, calls: int, *, before: bool) -> None:
        function, left = getattr(owner, name), [calls]

        def call(*arguments: Any, **options: Any) -> Any:
            is_due = self.now >= self.step
            left[0] -= is_due
            if is_due and left[0] == 0 and before:
                self._die()
            result = function(*arguments, **options)
            if is_due and left[0] == 0:
                self._die()
            return result

        setattr(owner, name, call)

    def _die(self) -> None:
        if self._befalls(self._fault):
            os.kill(os.getpid(), self._signal)


_ARMED: dict[str, Callable[[_At], None]] = {
    "forward": lambda at: at.before(Trainer, "_loss", calls=2),
    "reduce-scatter": lambda at: at.before(units, "scatter_flat", calls=2),
    # Of several buckets: the others have some of them whole, and some not.
    "second hop": lambda at: at.before(ReplicationGroup, "run_stage", calls=5),
    # Where gradients are added up in one order, by groups of micro-batches.
    "ordered second hop": lambda at: at.before(ReplicationGroup, "exchange", calls=2),
    # Others may still read what this worker has summed up, if they share memory.
    "reading": lambda at: at.before(ReplicationGroup, "end_reading"),
    "longer second hop": lambda at: at.lengthen_second_hop(),
    # The others may commit the step; this group cannot.
    "after the second hop": lambda at: at.after(SecondHop, "finish"),
    # All workers of the group have voted, so the second hop of each is done.
    "vote": lambda at: at.before(trainer, "check_step"),
    "regroup": lambda at: at.before(preparing, "connect"),
    "assembling": lambda at: at.before(ReplicationGroup, "assemble"),
    "after regrouping": lambda at: at.after(ReplicationGroup, "assemble"),
    "copy out": lambda at: at.before(Copies, "send", calls=2),
    "copy in": lambda at: at.after(Copies, "receive"),
    "checkpoint": lambda at: at.after(Background, "submit"),
    # Of several tensors in the worker's file.
    "half a file": lambda at: at.before(filesystem, "_write_item", calls=2),
    "before its record": lambda at: at.before(CheckpointFolder, "end_part"),
    "before it is visible": lambda at: at.before(CheckpointFolder, "commit"),
    "after it is visible": lambda at: at.after(CheckpointFolder, "commit"),
}
