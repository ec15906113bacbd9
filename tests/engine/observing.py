"""Counts the collectives of a run in each worker."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import nn

from mics_core.comm import units as unit_collectives
from mics_core.comm.replication import ReplicationGroup
from mics_core.comm.ring import NUM_DOORS
from mics_core.comm.shared import Neighbours
from mics_core.engine.units import UnitDriver
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.layouts import train_over_groups

_LIMIT_S = 20.0


@dataclass
class Seen:
    """What one worker did.

    Args:
        reductions: Reductions over the replication group of each unit, in the whole run.
        sizes: Bytes of every reduction.
        left_during_backward: Buckets that were on their way to other groups when backward was held
            up before its last operation, over the run.
        stages: Calls of each stage of a gather or scatter.
        doors: Doors passed with the workers of the node, in each hop.
        buffer: First and last address of the gradient buffer.
    """

    reductions: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    left_during_backward: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    doors: Counter[str] = field(default_factory=Counter)
    outside_the_buffer: int = 0
    of_this_step: int = 0
    missed: bool = False
    driver: Any = None


def train_observed(
    spec: JobSpec,
    num_groups: int,
    partition_size: int,
    workers_per_node: int,
    strategy: Strategy | None,
) -> tuple[dict[str, Any], Seen] | None:
    seen = Seen()
    run_stage, begin_step = ReplicationGroup.run_stage, UnitDriver.begin_step
    passed = Neighbours.pass_door
    left = threading.Condition()

    def begin(driver: UnitDriver, *arguments: Any, **options: Any) -> None:
        if seen.driver is None:
            modules = driver._root.modules()
            first = next(module for module in modules if isinstance(module, nn.Embedding))
            first.register_full_backward_pre_hook(lambda *_: hold_up())
        seen.driver, seen.of_this_step = driver, 0
        begin_step(driver, *arguments, **options)

    def reduce(group: ReplicationGroup, stage: int, flat: torch.Tensor) -> None:
        if stage == 1:  # the one between nodes
            with left:
                count(flat)
                seen.of_this_step += 1
                left.notify_all()
        run_stage(group, stage, flat)

    def count(flat: torch.Tensor) -> None:
        buffer = seen.driver.gradients
        first = (flat.data_ptr() - buffer.flat.data_ptr()) // flat.element_size()
        last = first + flat.numel()
        if not 0 <= first < last <= buffer.flat.numel():
            seen.outside_the_buffer += 1
        seen.sizes.append(flat.nbytes)
        for unit in buffer.units:
            if first <= unit.offset and unit.offset + unit.num_elements <= last:
                seen.reductions[unit.name] += 1

    def pass_door(neighbours: Neighbours, number: int) -> None:
        with left:
            seen.doors["second" if len(neighbours._doors) == NUM_DOORS else "first"] += 1
        passed(neighbours, number)

    def hold_up() -> None:
        if not seen.driver._is_last:
            return
        # The last bucket holds what is outside the blocks, the embedding itself included.
        expected = len(seen.driver.gradients.buckets) - 1
        with left:
            limit_s = 0.0 if seen.missed else _LIMIT_S
            seen.missed = not left.wait_for(lambda: seen.of_this_step >= expected, limit_s)
            seen.left_during_backward += seen.of_this_step

    def counted(name: str) -> Any:
        original = getattr(unit_collectives, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.stages[name] += 1
            return original(*arguments, **options)

        return mock.patch.object(unit_collectives, name, call)

    stages = ["gather_flat", "gather_column", "gather_rows"]
    stages += ["scatter_flat", "scatter_rows", "scatter_columns"]
    patches = [
        mock.patch.object(UnitDriver, "begin_step", begin),
        mock.patch.object(ReplicationGroup, "run_stage", reduce),
        mock.patch.object(Neighbours, "pass_door", pass_door),
        *(counted(name) for name in stages),
    ]
    for patch in patches:
        patch.start()
    try:
        result = train_over_groups(spec, num_groups, partition_size, workers_per_node, strategy)
    finally:
        for patch in patches:
            patch.stop()
    if result is None:
        return None
    seen.driver = None
    return result, seen
