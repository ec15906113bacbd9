"""Ray Train's own elastic trainer under fire: the same simulated nodes, and the same faults.

A fault stops all of its workers and starts them anew from the last reported checkpoint, so the
next step of its survivors is the first step of the run that was started again.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.factory import ROOT, tail_of
from benchmarks.harness.followed import MissingError, eventually
from benchmarks.recovery.commits import Change, cost_of_change, cost_of_loss, normal_s
from benchmarks.recovery.draining import drain_node
from benchmarks.recovery.outcome import NORMAL_STEPS, Outcome
from benchmarks.recovery.setting import NUM_GROUPS, PARTITION_SIZE, groups_before
from benchmarks.recovery.shots import Report, Shots
from benchmarks.recovery.steps import StepFolder, StepLine
from mics_core.cluster.local import LocalCluster

__all__ = ["CHECKPOINT_EVERY", "RESIZE_INTERVAL_S", "STEPS", "run"]

CHECKPOINT_EVERY = 10
"""Steps from one reported checkpoint to the next."""
RESIZE_INTERVAL_S = 5.0
"""How often Ray Train asks whether it may grow; it comes with 60."""
STEPS = "steps"
"""The folder, inside the run's own, of what its workers write."""
_WORLD_SIZE = NUM_GROUPS * PARTITION_SIZE
_DEADLINE_S = 400.0
"""A lost node alone costs it 100 s."""

_Found = TypeVar("_Found")


def run(shots: Shots, report: Report) -> None:
    """Do all faults to one run, and report what each cost."""
    (shots.folder / STEPS).mkdir()
    log = shots.folder / "driver.log"
    with (
        LocalCluster(NUM_GROUPS, PARTITION_SIZE) as cluster,
        _driver(cluster.address, shots, log) as process,
    ):
        shots.inflict(_Shooting(process, log, cluster, shots).inflict, report)


@contextmanager
def _driver(address: str, shots: Shots, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the driver for as long as the context lasts; its workers end with the cluster."""
    command = [sys.executable, "-m", "benchmarks.recovery.ray_train_job", address]
    command += [str(shots.folder), str(shots.tokens), str(shots.course.forward_s)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is the benchmark's to handle
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class _Shooting:
    """Does faults to the run, after it was brought to as many nodes as each begins with.

    Args:
        driver: The process that runs it.
        log: Its output.
        cluster: The nodes.
        shots: What to do.
    """

    def __init__(
        self, driver: subprocess.Popen[bytes], log: Path, cluster: LocalCluster, shots: Shots
    ):
        self._driver = driver
        self._log = log
        self._cluster = cluster
        self._random = random.Random(shots.seed)
        self._steps = StepFolder(shots.folder / STEPS)

    def inflict(self, fault: str) -> Outcome:
        """Do one fault and measure it; returns when the survivors train."""
        self._bring_to(groups_before(fault))
        match fault:
            case "worker killed":
                return self._lose([self._random.choice(self._workers()).pid])
            case "group killed":
                node = self._random.choice(self._workers()).group
                return self._lose([each.pid for each in self._workers() if each.group == node])
            case "node killed":
                return self._lose_node()
            case "node added":
                return self._add_node()
            case "group drained":
                return self._drain()
        raise ValueError(f"{fault} is no fault of Ray Train's run")

    # The faults.

    def _lose(self, victims: list[int]) -> Outcome:
        before, at = self._commits(), time.time()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        return cost_of_loss(self._restarted(before, lambda _: True), at)

    def _lose_node(self) -> Outcome:
        node = self._random.choice(self._workers()).group
        before, at = self._commits(), time.time()
        self._cluster.kill_node(node)
        return cost_of_loss(self._restarted(before, lambda _: True), at)

    def _add_node(self) -> Outcome:
        """A third node; the run may have as many workers as there is room for."""
        before, at = self._commits(), time.time()
        # At the usual priority: the members are stopped, and wait for those that start there.
        self._cluster.add_node()
        change = self._restarted(before, lambda commit: commit.num_workers == _WORLD_SIZE)
        self._wait_for_workers(_WORLD_SIZE)
        until_s = change.after[-1].time - at
        return cost_of_change(change, normal_s(before), normal_s(self._commits()), until_s)

    def _drain(self) -> Outcome:
        """A node that is to go, with a notice; it is taken away when nobody is on it any more."""
        node, before = self._random.choice(self._workers()).group, self._commits()
        at = time.time()
        drain_node(self._cluster.address, node)
        change = self._restarted(before, lambda commit: commit.num_workers < _WORLD_SIZE, at)
        self._cluster.kill_node(node)
        self._wait_for_workers(change.after[-1].num_workers)
        return cost_of_change(change, normal_s(before), normal_s(self._commits()))

    def _restarted(
        self,
        before: list[StepLine],
        is_expected: Callable[[StepLine], bool],
        since: float | None = None,
    ) -> Change:
        """Wait for the first commit of a new start; return how the run came there.

        Args:
            before: The commits before the fault.
            is_expected: Which commit is meant.
            since: Where the change begins; without, with the last commit before the restart.
        """
        old = before[-1].generation

        def find() -> StepLine | None:
            fresh = [commit for commit in self._commits() if commit.generation > old]
            return next(filter(is_expected, fresh), None)

        first = self._eventually(find, "a step after the restart")
        commits = [commit for commit in self._commits() if commit.time <= first.time]
        if since is None:
            since = max(c.time for c in commits if c.generation < first.generation)
        # The step under way when the workers were stopped is run again.
        return Change(
            before=[commit for commit in commits if commit.time <= since],
            after=[commit for commit in commits if commit.time > since],
            is_under_way=True,
        )

    # What is there.

    def _commits(self) -> list[StepLine]:
        self._steps.read()
        return [line for line in self._steps.lines if line.rank == 0]

    def _workers(self) -> list[StepLine]:
        """Return the last step of every worker that trains."""
        newest = self._commits()[-1].generation
        lines = [line for line in self._steps.lines if line.generation == newest]
        return list({line.rank: line for line in lines}.values())

    def _bring_to(self, num_nodes: int) -> None:
        """Wait for a run on so many nodes that has trained for a while."""
        for _ in range(len(self._cluster.node_ids), num_nodes):
            self._cluster.add_node()
        for node in self._cluster.node_ids[num_nodes:]:
            self._cluster.kill_node(node)
        self._wait_for_workers(num_nodes * PARTITION_SIZE)

    def _wait_for_workers(self, num_workers: int) -> None:
        """Wait for enough steps of one start with so many workers."""

        def find() -> bool:
            commits = self._commits()
            last = [c for c in commits if c.generation == commits[-1].generation]
            enough = len(last) > NORMAL_STEPS
            return enough and last[-1].num_workers == num_workers

        self._eventually(find, f"{NORMAL_STEPS} steps of {num_workers} workers")

    def _eventually(self, find: Callable[[], _Found | None], what: str) -> _Found:
        def probe() -> _Found | None:
            if self._driver.poll() is not None:
                raise MissingError(f"{what} never came: Ray Train's driver ended.")
            return find()

        try:
            return eventually(probe, what, _DEADLINE_S)
        except MissingError as error:
            raise MissingError(f"{error}\n{tail_of(self._log)}") from None
