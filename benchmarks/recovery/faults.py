"""The faults, and what each costs: our system's part of the comparison."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.recovery.followed import FollowedJob
from mics_core.spec.status import GroupState, GroupStatus

__all__ = ["FAULTS", "Outcome", "Shooting"]

FAULTS = ("worker killed", "group killed", "node killed", "node added", "group drained")
_NORMAL_STEPS = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault.

    Args:
        stall_s: From the fault to the survivors' next committed step, less a normal step.
        steps_redone: Steps that survivors ran again.
        extra_step_ratio: What the change of membership added to a step, in normal steps.
        until_contribution_s: From a node to its first part in a step; none where none came.
    """

    stall_s: float
    steps_redone: int
    extra_step_ratio: float
    until_contribution_s: float | None = None


class Shooting:
    """Does faults to a running job of three groups, and brings it back to three after each.

    Args:
        job: The job.
        seed: Of the choice of victims.
    """

    def __init__(self, job: FollowedJob, seed: int):
        self._job = job
        self._random = random.Random(seed)

    def settle(self) -> None:
        """Wait for three groups that have trained for a while."""
        self._job.wait_until(lambda: self._newest_groups() == 3, "a step of three groups")
        self._job.wait_for_steps(_NORMAL_STEPS)

    def inflict(self, fault: str) -> Outcome:
        """Do one fault and measure it; returns when three groups train again."""
        match fault:
            case "worker killed":
                victim = self._random.choice(self._members())
                return self._lose(lambda: [self._random.choice(victim.workers).pid])
            case "group killed":
                victim = self._random.choice(self._members())
                return self._lose(lambda: [worker.pid for worker in victim.workers])
            case "node killed":
                return self._lose_node()
            case "node added":
                return self._add_node()
            case "group drained":
                return self._drain()
        raise ValueError(f"{fault} is none of {', '.join(FAULTS)}")

    # The faults.

    def _lose(self, victims_of: Callable[[], list[int]]) -> Outcome:
        victims, normal_s = victims_of(), self._normal_s()
        before = len(self._job.steps)
        at = time.time()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return self._recovered(at, before, normal_s)

    def _lose_node(self) -> Outcome:
        node = self._random.choice(self._members()).workers[0].node_id
        normal_s, before, at = self._normal_s(), len(self._job.steps), time.time()
        self._job.cluster.kill_node(node)
        return self._recovered(at, before, normal_s, self._job.cluster.add_node)

    def _add_node(self) -> Outcome:
        """A fourth node, and a fourth group that wants it."""
        normal_s, before, at = self._normal_s(), len(self._job.steps), time.time()
        self._job.scale(4)
        self._job.cluster.add_node()
        self._job.wait_until(lambda: self._newest_groups() == 4, "a step of four groups")
        first = next(step for step in self._job.steps[before:] if step.num_groups == 4)
        self._job.wait_for_steps(_NORMAL_STEPS)
        outcome = Outcome(0.0, 0, first.step_s / normal_s - 1.0, first.time - at)
        self._job.scale(3)
        self.settle()
        node = self._empty_node()
        self._job.cluster.kill_node(node)
        return outcome

    def _drain(self) -> Outcome:
        normal_s, before = self._normal_s(), len(self._job.steps)
        self._job.scale(2)
        self._job.wait_until(lambda: self._newest_groups() == 2, "a step of two groups")
        first = next(step for step in self._job.steps[before:] if step.num_groups == 2)
        self._job.wait_for_steps(_NORMAL_STEPS)
        # Two groups do the work of three: the step after the first is what is normal now.
        after_s = median(step.step_s for step in self._job.steps if step.step > first.step)
        self._job.scale(3)
        self.settle()
        extra_s = first.step_s - max(normal_s, after_s)
        return Outcome(max(0.0, extra_s), 0, extra_s / normal_s)

    def _recovered(
        self,
        at: float,
        before: int,
        normal_s: float,
        bring_room: Callable[[], object] = lambda: None,
    ) -> Outcome:
        """Measure from a fault at `at` on, and wait for three groups."""
        self._job.wait_until(
            lambda: any(step.num_groups == 2 for step in self._job.steps[before:]),
            "a step of the two groups that are left",
        )
        first = next(step for step in self._job.steps[before:] if step.num_groups == 2)
        outcome = Outcome(first.time - at - normal_s, 1, first.step_s / normal_s - 1.0)
        bring_room()
        self.settle()
        return outcome

    # What is there.

    def _members(self) -> list[GroupStatus]:
        groups = self._job.status().groups
        return [group for group in groups if group.state == GroupState.MEMBER]

    def _empty_node(self) -> str:
        busy = {worker.node_id for group in self._members() for worker in group.workers}
        return next(node for node in self._job.cluster.node_ids if node not in busy)

    def _newest_groups(self) -> int:
        return self._job.steps[-1].num_groups if self._job.steps else 0

    def _normal_s(self) -> float:
        return median(step.step_s for step in self._job.steps[-_NORMAL_STEPS:])
