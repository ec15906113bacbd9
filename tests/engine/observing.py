"""Counts the collectives of a run in each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from mics_core.comm import units as unit_collectives
from mics_core.comm.replication import ReplicationGroup
from mics_core.engine.second_hop import SecondHop
from mics_core.engine.units import UnitDriver
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec
from tests.engine.layouts import train_over_groups


@dataclass
class Seen:
    """What one worker did.

    Args:
        reductions: Reductions over the replication group of each unit, in the whole run.
        sizes: Bytes of every reduction.
        left_during_backward: Buckets sent before the last unit was complete, over the run.
        stages: Calls of each stage of a gather or scatter.
        buffer: First and last address of the gradient buffer.
    """

    reductions: Counter[str] = field(default_factory=Counter)
    sizes: list[int] = field(default_factory=list)
    left_during_backward: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    outside_the_buffer: int = 0
    driver: Any = None


def train_observed(
    spec: JobSpec,
    num_groups: int,
    partition_size: int,
    workers_per_node: int,
    strategy: Strategy | None,
) -> tuple[dict[str, Any], Seen] | None:
    seen = Seen()
    run_stage, complete = ReplicationGroup.run_stage, SecondHop.unit_complete
    begin_step = UnitDriver.begin_step

    def begin(driver: UnitDriver, active: Sequence[int]) -> None:
        seen.driver = driver
        begin_step(driver, active)

    def reduce(group: ReplicationGroup, stage: int, flat: torch.Tensor) -> None:
        if stage == 1:  # the one between nodes
            count(flat)
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

    def note(hop: SecondHop, index: int) -> None:
        before = hop._next_bucket
        complete(hop, index)
        if not all(hop._complete):
            seen.left_during_backward += hop._next_bucket - before

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
        mock.patch.object(SecondHop, "unit_complete", note),
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
