"""The faults, and what each costs: our system's part of the comparison."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.harness.followed import FollowedJob
from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState, GroupStatus, StepRecord

__all__ = ["FAULTS", "Outcome", "Shooting"]

FAULTS = ("worker killed", "group killed", "node killed", "node added", "group drained")
_NORMAL_STEPS = 15


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault.

    Args:
        stall_s: From the fault to the survivors' next committed step, less a normal step.
        steps_redone: Steps that survivors began or committed, and ran again.
        extra_step_ratio: What the change of membership added to the members' steps, from its
            generation to the last newcomer's first share, in normal steps.
        until_contribution_s: From a node to its first part in a step; none where none came.
        phases: Seconds of each phase, as the system itself tells them; none where it does not.
    """

    stall_s: float
    steps_redone: int
    extra_step_ratio: float
    until_contribution_s: float | None = None
    phases: dict[str, float | None] | None = None


class Shooting:
    """Does faults to a running job of three groups, and brings it back to three after each.

    Args:
        job: The job.
        cluster: Its nodes.
        seed: Of the choice of victims.
    """

    def __init__(self, job: FollowedJob, cluster: LocalCluster, seed: int):
        self._job = job
        self._cluster = cluster
        self._random = random.Random(seed)

    def settle(self) -> None:
        """Wait for three groups that have trained for a while."""
        self._job.wait_until(lambda _: self._newest_groups() == 3, "a step of three groups")
        self._wait_for_steps()

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
        self._cluster.kill_node(node)
        return self._recovered(at, before, normal_s, self._cluster.add_node)

    def _add_node(self) -> Outcome:
        """A fourth node, and a fourth group that wants it."""
        normal_s, before, at = self._normal_s(), len(self._job.steps), time.time()
        self._job.scale(4)
        self._cluster.add_node()
        self._job.wait_until(lambda _: self._newest_groups() == 4, "a step of four groups")
        first = next(step for step in self._job.steps[before:] if step.num_groups == 4)
        self._wait_for_steps()
        outcome = self._changed(before, first, normal_s, first.time - at)
        self._job.scale(3)
        self.settle()
        node = self._empty_node()
        self._cluster.kill_node(node)
        return outcome

    def _drain(self) -> Outcome:
        normal_s, before = self._normal_s(), len(self._job.steps)
        self._job.scale(2)
        self._job.wait_until(lambda _: self._newest_groups() == 2, "a step of two groups")
        first = next(step for step in self._job.steps[before:] if step.num_groups == 2)
        self._wait_for_steps()
        # Two groups do the work of three: the steps after the first are what is normal now.
        after_s = median(step.step_s for step in self._job.steps if step.step > first.step)
        outcome = self._changed(before, first, max(normal_s, after_s))
        self._job.scale(3)
        self.settle()
        return outcome

    def _changed(
        self, before: int, first: StepRecord, normal_s: float, until_s: float | None = None
    ) -> Outcome:
        """Measure a change without a loss, from its generation to the first step that shows it."""
        begins = next(
            step for step in self._job.steps[before:] if step.generation == first.generation
        )
        steps = [s for s in self._job.steps[before:] if begins.step <= s.step <= first.step]
        extra_s = sum(step.step_s - normal_s for step in steps)
        redone = self._redone(begins) - 1  # none was under way
        phases = self._phases(first.generation)
        return Outcome(max(0.0, extra_s), redone, extra_s / normal_s, until_s, phases)

    def _redone(self, first: StepRecord) -> int:
        """Return the steps that were begun before `first` and done again: the one under way too."""
        earlier = [step.step for step in self._job.steps if step.generation < first.generation]
        return max(earlier) + 2 - first.step

    def _recovered(
        self,
        at: float,
        before: int,
        normal_s: float,
        bring_room: Callable[[], object] = lambda: None,
    ) -> Outcome:
        """Measure from a fault at `at` on, and wait for three groups."""
        self._job.wait_until(
            lambda _: any(step.num_groups == 2 for step in self._job.steps[before:]),
            "a step of the two groups that are left",
        )
        first = next(step for step in self._job.steps[before:] if step.num_groups == 2)
        stall_s = first.time - at - normal_s
        redone = self._redone(first)
        extra = first.step_s / normal_s - 1.0
        outcome = Outcome(stall_s, redone, extra, phases=self._phases(first.generation))
        bring_room()
        self.settle()
        return outcome

    def _phases(self, generation: int) -> dict[str, float | None]:
        """Return what the job says of a change, with a normal step at that time beside it."""
        regrouped = f"what generation {generation} took"
        self._job.wait_until(lambda job: generation in job.regrouped, regrouped)
        return dict(self._job.regrouped[generation]) | {"normal_step_s": self._normal_s()}

    # What is there.

    def _wait_for_steps(self) -> None:
        goal = len(self._job.steps) + _NORMAL_STEPS
        self._job.wait_until(lambda job: len(job.steps) >= goal, f"step {goal}")

    def _members(self) -> list[GroupStatus]:
        groups = self._job.status().groups
        return [group for group in groups if group.state == GroupState.MEMBER]

    def _empty_node(self) -> str:
        busy = {worker.node_id for group in self._members() for worker in group.workers}
        return next(node for node in self._cluster.node_ids if node not in busy)

    def _newest_groups(self) -> int:
        return self._job.steps[-1].num_groups if self._job.steps else 0

    def _normal_s(self) -> float:
        return median(step.step_s for step in self._job.steps[-_NORMAL_STEPS:])
