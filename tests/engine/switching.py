"""Training through an announced generation, run by pool workers."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from unittest import mock

import torch
import torch.distributed as dist

from mics_core.comm.replication import ReplicationGroup
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine import preparing
from mics_core.engine.build import build_trainer
from mics_core.engine.loop import train
from mics_core.engine.membership import StaticMembership
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import Trainer
from mics_core.spec import JobSpec
from tests.engine.losing import take_place

HEARD_AT = 1
"""The step during which the second generation's plan arrives."""
_PATIENCE_S = 60.0


class AnnouncingMembership(StaticMembership):
    """A second generation of the same groups, which is pending once it is connected.

    Args:
        plans: Both generations.
        group_id: This worker's partition group.
        connected: Set once this worker has the second one's connections.
    """

    def __init__(
        self,
        plans: tuple[GenerationPlan, GenerationPlan],
        group_id: int,
        connected: threading.Event,
    ):
        super().__init__(plans[0], group_id)
        self._plans = plans
        self._connected = connected

    def announced(self) -> GenerationPlan:
        return self._plans[len(self.commits) >= HEARD_AT]

    def pending(self) -> int:
        return 2 if self._connected.is_set() else 1

    def committed(self, commit: StepCommit, took_s: float) -> None:
        super().committed(commit, took_s)
        if len(self.commits) == HEARD_AT + 1:
            # All workers have begun a step since they heard; none needs a boundary to connect.
            assert self._connected.wait(_PATIENCE_S), "the second generation was not connected"

    def plan(self, number: int) -> GenerationPlan:
        return self._plans[number - 1]


@dataclass(frozen=True)
class Switched:
    """What one worker saw.

    Args:
        losses: Of the steps.
        generations: Of the steps.
        connects: Each time it connected: the generation, and the steps committed by then.
    """

    losses: list[float]
    generations: list[int]
    connects: list[tuple[int, int]]


def train_through_an_announcement(
    spec: JobSpec, num_groups: int, partition_size: int
) -> Switched | None:
    """Train; all workers hear of a second generation, and enter it once one has connected."""
    place = take_place(num_groups, partition_size)
    if place is None:
        dist.barrier()
        return None
    connected = threading.Event()
    membership = AnnouncingMembership(place.plans, place.group_id, connected)
    connects: list[tuple[int, int]] = []
    connect = preparing.connect

    def record(*arguments: object, **options: object) -> ReplicationGroup:
        group = connect(*arguments, **options)  # type: ignore[arg-type]
        connects.append((group.member.generation, len(membership.commits)))
        if group.member.generation == 2:
            connected.set()
        return group

    def build(initialise: bool) -> Trainer:
        return build_trainer(spec, place.partition, torch.device("cpu"), initialise=initialise)

    try:
        with mock.patch.object(preparing, "connect", record):
            train(build, membership, begins_run=True)
    finally:
        dist.barrier()
    return Switched(
        [commit.loss for commit in membership.commits],
        [commit.generation for commit in membership.commits],
        connects,
    )
