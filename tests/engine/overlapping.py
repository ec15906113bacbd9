"""Holds computation up until the collectives that should run beside it have ended.

Where a collective only begins after the computation, the wait runs into its limit and is told.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from torch import nn

from mics_core.comm.units import UnitGather, UnitScatter
from mics_core.engine.units import UnitDriver
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.layouts import train_over_groups

_LIMIT_S = 20.0


class Progress:
    """Counts events, named by strings, and lets computation wait for them."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.num_waits = 0
        self._counts: Counter[str] = Counter()
        self._changed = threading.Condition()

    def note(self, event: str) -> int:
        """Count an event; return how often it was seen before."""
        with self._changed:
            self._counts[event] += 1
            self._changed.notify_all()
            return self._counts[event] - 1

    def count(self, event: str) -> int:
        with self._changed:
            return self._counts[event]

    def wait_for(self, event: str, times: int) -> None:
        """Wait until an event was seen so often; after the first miss nobody waits any more."""
        self.num_waits += 1
        with self._changed:
            limit_s = 0.0 if self.missed else _LIMIT_S
            if not self._changed.wait_for(lambda: self._counts[event] >= times, limit_s):
                self.missed.append(f"{event}: {self._counts[event]} of {times}")


def train_held_up(
    spec: JobSpec, partition_size: int, workers_per_node: int, strategy: Strategy
) -> tuple[list[str], int] | None:
    """Train a group that gathers each block twice a micro-batch, its blocks' computation held up.

    Returns:
        What did not run beside the computation, and how often the computation waited.
    """
    progress = Progress()
    begin_step = UnitDriver.begin_step

    def begin(driver: UnitDriver, *arguments: Any, **options: Any) -> None:
        if progress.note("step") == 0:
            _hold_up([unit for unit in reversed(driver._units) if unit.is_block], progress)
        begin_step(driver, *arguments, **options)

    with (
        mock.patch.object(UnitDriver, "begin_step", begin),
        mock.patch.object(UnitGather, "_gather", _noted(UnitGather._gather, progress)),
        mock.patch.object(UnitScatter, "_scatter", _noted(UnitScatter._scatter, progress)),
    ):
        result = train_over_groups(spec, 1, partition_size, workers_per_node, strategy)
    return None if result is None else (progress.missed, progress.num_waits)


def _noted(original: Callable[..., None], progress: Progress) -> Callable[..., None]:
    def run(collective: Any, *arguments: Any, **options: Any) -> None:
        progress.note(f"{collective._what} begins")
        original(collective, *arguments, **options)
        progress.note(f"{collective._what} ends")

    return run


def _hold_up(blocks: list[Any], progress: Progress) -> None:
    gathers = [f"all-gather of unit {block.name!r}" for block in blocks]
    scatters = [f"reduce-scatter of unit {block.name!r}" for block in blocks]

    def forward(index: int) -> None:
        micro_batch = progress.note(f"forward of block {index}")
        if index + 1 < len(blocks):
            progress.wait_for(f"{gathers[index + 1]} ends", 2 * micro_batch + 1)
        if index + 2 < len(blocks):  # the one after it has its turn later: two units at most
            begun = progress.count(f"{gathers[index + 2]} begins")
            if begun != 2 * micro_batch:
                progress.missed.append(f"{gathers[index + 2]} began too early: {begun}")

    def backward(index: int) -> None:
        micro_batch = progress.note(f"backward of block {index}")
        if index > 0:
            progress.wait_for(f"{gathers[index - 1]} ends", 2 * micro_batch + 2)
        if index + 1 < len(blocks):
            progress.wait_for(f"{scatters[index + 1]} ends", micro_batch + 1)

    for index, block in enumerate(blocks):
        inside: nn.Module = next(block.module.children())
        inside.register_forward_pre_hook(lambda *_, index=index: forward(index))
        inside.register_full_backward_pre_hook(lambda *_, index=index: backward(index))
