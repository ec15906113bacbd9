"""Does the faults to our system, and measures what each costs."""

from __future__ import annotations

import os
import random
import signal
import time

from benchmarks.harness.followed import FollowedJob
from benchmarks.recovery.draining import drain_node
from benchmarks.recovery.history import History
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome
from benchmarks.recovery.setting import NUM_GROUPS, groups_before
from benchmarks.recovery.starts import given_way, take_part
from mics_core.cluster.local import LocalCluster
from mics_core.spec.status import GroupEvent, GroupState, GroupStatus, StepRecord

__all__ = ["Shooting"]


class Shooting:
    """Does faults to a running job, each once so many groups train as it is to begin with.

    Args:
        job: The job.
        cluster: Its nodes.
        seed: Of the choice of victims.
    """

    def __init__(self, job: FollowedJob, cluster: LocalCluster, seed: int):
        self._job = job
        self._cluster = cluster
        self._random = random.Random(seed)

    def inflict(self, fault: str) -> Outcome:
        """Do one fault and measure it; returns when the survivors train."""
        self._bring_to(groups_before(fault))
        match fault:
            case "worker killed":
                return self._lose([self._random.choice(self._victim().workers).pid])
            case "group killed":
                return self._lose([worker.pid for worker in self._victim().workers])
            case "node killed":
                return self._lose_node()
            case "node added":
                return self._add_node()
            case "group drained":
                return self._drain()
        raise ValueError(f"{fault} is no fault of our job")

    # The faults.

    def _lose(self, victims: list[int]) -> Outcome:
        before, at = len(self._job.steps), time.time()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return self._recovered(at, before)

    def _lose_node(self) -> Outcome:
        node = self._victim().workers[0].node_id
        before, at = len(self._job.steps), time.time()
        self._cluster.kill_node(node)
        return self._recovered(at, before)

    def _add_node(self) -> Outcome:
        """A third node, and a third group that waits for it."""
        before, events, at = len(self._job.steps), len(self._job.events), time.time()
        with given_way():
            node = self._cluster.add_node()
        newcomer = self._ready_since(events)
        # Its workers alone: to look for all of the node takes processors from the step.
        take_part(self._job.pids(newcomer))
        first = self._first_of(NUM_GROUPS, before)
        self._wait_for_steps()
        take_part(process.pid for process in self._cluster.processes_of(node))
        history = self._history(first)
        since = history.announced(first.generation)
        return history.cost_of_change(at, since, first, first.time - at)

    def _drain(self) -> Outcome:
        """A node that is to go, with a notice; it is taken away once its group has left."""
        node = self._victim().workers[0].node_id
        before, at = len(self._job.steps), time.time()
        drain_node(self._cluster.address, node)
        first = self._first_of(NUM_GROUPS - 1, before)
        self._wait_for_steps()
        outcome = self._history(first).cost_of_change(at, at, first)
        self._cluster.kill_node(node)
        return outcome

    def _recovered(self, at: float, before: int) -> Outcome:
        """Measure from a fault at `at` on."""
        first = self._first_of(NUM_GROUPS - 1, before)
        return self._history(first).cost_of_loss(at, first)

    def _bring_to(self, num_groups: int) -> None:
        """Wait for so many groups that have trained for a while, with a node for each."""
        for _ in range(len(self._cluster.node_ids), num_groups):
            self._cluster.add_node()
        surplus = self._cluster.node_ids[num_groups:]
        if surplus:
            # Only a run that is whole says by its groups when it has lost one.
            self._bring_to(len(self._cluster.node_ids))
        for node in surplus:
            self._cluster.kill_node(node)

        def trains(job: FollowedJob) -> bool:
            last = job.steps[-NORMAL_STEPS - 1 :]
            together = {(step.generation, step.num_groups) for step in last}
            return len(last) > NORMAL_STEPS and together == {(last[-1].generation, num_groups)}

        self._job.wait_until(trains, f"{NORMAL_STEPS} steps of {num_groups} groups")

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

    def _ready_since(self, num_events: int) -> int:
        """Wait for the first group that becomes ready after so many events."""

        def find() -> int | None:
            fresh = (e for e in self._job.events[num_events:] if isinstance(e, GroupEvent))
            return next((e.group_id for e in fresh if e.state == GroupState.READY), None)

        self._job.wait_until(lambda _: find() is not None, "a group that is ready")
        group = find()
        assert group is not None
        return group

    def _history(self, first: StepRecord) -> History:
        """Return the history once it tells what the change before `first` took."""
        generation = first.generation
        regrouped = f"what generation {generation} took"
        self._job.wait_until(lambda job: generation in job.regrouped, regrouped)
        return History.of(self._job)

    def _wait_for_steps(self) -> None:
        goal = len(self._job.steps) + NORMAL_STEPS
        self._job.wait_until(lambda job: len(job.steps) >= goal, f"step {goal}")

    def _victim(self) -> GroupStatus:
        groups = self._job.status().groups
        return self._random.choice([each for each in groups if each.state == GroupState.MEMBER])
