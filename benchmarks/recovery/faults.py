"""The faults, and what each costs: our system's part of the comparison."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from benchmarks.harness.followed import FollowedJob
from benchmarks.recovery.draining import drain_node
from benchmarks.recovery.history import History
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome
from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupState, GroupStatus, StepRecord

__all__ = ["FAULTS", "Shooting"]

FAULTS = ("worker killed", "group killed", "node killed", "node added", "group drained")


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
        victims, before, at = victims_of(), len(self._job.steps), time.time()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return self._recovered(at, before)

    def _lose_node(self) -> Outcome:
        node = self._random.choice(self._members()).workers[0].node_id
        before, at = len(self._job.steps), time.time()
        self._cluster.kill_node(node)
        return self._recovered(at, before, self._cluster.add_node)

    def _add_node(self) -> Outcome:
        """A fourth node, and a fourth group that wants it."""
        before, at = len(self._job.steps), time.time()
        self._job.scale(4)
        self._cluster.add_node()
        first = self._first_of(4, before)
        self._wait_for_steps()
        history = self._history(first)
        since = history.announced(first.generation)
        outcome = history.cost_of_change(since, first, first.time - at)
        self._job.scale(3)
        self.settle()
        node = self._empty_node()
        self._cluster.kill_node(node)
        return outcome

    def _drain(self) -> Outcome:
        """A node that is to go, with a notice; it is taken away once its group has left."""
        node = self._random.choice(self._members()).workers[0].node_id
        before, at = len(self._job.steps), time.time()
        drain_node(self._cluster.address, node)
        first = self._first_of(2, before)
        self._wait_for_steps()
        outcome = self._history(first).cost_of_change(at, first)
        self._cluster.kill_node(node)
        self._cluster.add_node()
        self.settle()
        return outcome

    def _recovered(
        self, at: float, before: int, bring_room: Callable[[], object] = lambda: None
    ) -> Outcome:
        """Measure from a fault at `at` on, and wait for three groups."""
        first = self._first_of(2, before)
        outcome = self._history(first).cost_of_loss(at, first)
        bring_room()
        self.settle()
        return outcome

    # What is there.

    def _first_of(self, num_groups: int, before: int) -> StepRecord:
        """Wait for the first step of so many groups among those after the first `before`."""

        def find() -> StepRecord | None:
            fresh = self._job.steps[before:]
            return next((step for step in fresh if step.num_groups == num_groups), None)

        self._job.wait_until(lambda _: find(), f"a step of {num_groups} groups")
        first = find()
        assert first is not None
        return first

    def _history(self, first: StepRecord) -> History:
        """Return the history once it tells what the change before `first` took."""
        generation = first.generation
        regrouped = f"what generation {generation} took"
        self._job.wait_until(lambda job: generation in job.regrouped, regrouped)
        return History.of(self._job)

    def _wait_for_steps(self) -> None:
        goal = len(self._job.steps) + NORMAL_STEPS
        self._job.wait_until(lambda job: len(job.steps) >= goal, f"step {goal}")

    def _members(self) -> list[GroupStatus]:
        groups = self._job.status().groups
        return [group for group in groups if group.state == GroupState.MEMBER]

    def _empty_node(self) -> str:
        busy = {worker.node_id for group in self._members() for worker in group.workers}
        return next(node for node in self._cluster.node_ids if node not in busy)

    def _newest_groups(self) -> int:
        return self._job.steps[-1].num_groups if self._job.steps else 0
