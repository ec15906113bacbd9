"""Our engine's own loop, trained a block of steps at a time: what `fixed` and `elastic` share.

`mics_core.engine.loop.train` runs in a thread. It is held where a step has been committed and
reported, and waits there for the next block without using a processor.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.harness.messages import Block
from benchmarks.harness.site import Site
from benchmarks.network.systems.mics import settings_of
from mics_core.comm.partition import PartitionGroup, form_partition_group
from mics_core.engine.loop import LoopOptions, train
from mics_core.engine.membership import Membership
from mics_core.engine.summary import StepCommit
from mics_core.engine.trainer import Trainer
from mics_core.spec import JobSpec

__all__ = ["Gate", "GatedMembership", "InBlocks", "form_group"]


class Gate:
    """Where the loop waits between two blocks."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._is_reached = self._is_open = False
        self._num_wanted = 0
        self._times_s: list[float] = []
        self._losses: list[float] = []
        self._ending = ""

    # For the loop.

    def wait(self) -> None:
        """Wait for a block to begin."""
        with self._news:
            self._is_reached = True
            self._news.notify_all()
            self._news.wait_for(lambda: self._is_open)

    def committed(self, loss: float) -> None:
        """Note a step of the block; after its last one, wait for the next block."""
        now = time.monotonic()
        with self._news:
            self._times_s.append(now)
            self._losses.append(loss)
            if len(self._times_s) == self._num_wanted:
                self._is_open = False
                self._news.notify_all()
                self._news.wait_for(lambda: self._is_open)

    def ended(self, why: str) -> None:
        """Note that there will be no more steps."""
        with self._news:
            self._ending = why
            self._news.notify_all()

    # For who measures.

    def until_reached(self) -> None:
        """Wait until the loop waits for its first block.

        Raises:
            RuntimeError: The loop came to its end.
        """
        with self._news:
            self._news.wait_for(lambda: self._ending or self._is_reached)
            if self._ending:
                raise RuntimeError(self._ending)

    def run(self, num_steps: int) -> Block:
        """Let the loop train one block; return what it brought.

        Raises:
            RuntimeError: The loop came to its end.
        """
        with self._news:
            processor_s = time.process_time()
            self._times_s, self._losses, self._num_wanted = [], [], num_steps
            self._is_open = True
            self._news.notify_all()
            self._news.wait_for(lambda: self._ending or not self._is_open)
            if self._ending:
                raise RuntimeError(self._ending)
            processor_s = time.process_time() - processor_s
            return Block(self._times_s, self._losses, processor_s)


class GatedMembership:
    """Holds the loop at a gate; comes before a `Membership` among the bases of a class.

    Args:
        gate: The gate.
        others: The membership's own.
    """

    def __init__(self, gate: Gate, *others: Any):
        super().__init__(*others)
        self._gate = gate

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        super().entered(generation, step, connect_s)
        self._gate.wait()

    def committed(self, commit: StepCommit, took_s: float) -> None:
        super().committed(commit, took_s)
        self._gate.committed(commit.loss)

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        super().broken(generation, step, error, has_state=has_state)
        self._gate.ended(f"step {step} was not committed: {error}")


class InBlocks:
    """One worker's loop, from its start on.

    Args:
        build: Builds the trainer; the argument says whether its weights are to be initialised.
        membership: Who the others are; it has to pass the gate.
        gate: The gate.
        spec: The job.
        description: What is said of it.
        kept: What has to live as long.
    """

    question = None

    def __init__(
        self,
        build: Callable[[bool], Trainer],
        membership: Membership,
        gate: Gate,
        spec: JobSpec,
        description: str,
        kept: object,
    ):
        self.description = description
        self._build = build
        self._membership = membership
        self._gate = gate
        self._options = LoopOptions(silence_s=spec.groups.silence_s)
        self._kept = kept
        threading.Thread(target=self._train, name="train", daemon=True).start()
        # The trainer is built in that thread, and nobody else may use the world meanwhile.
        gate.until_reached()

    def block(self, num_steps: int) -> Block:
        """Train so many steps; all workers call it."""
        return self._gate.run(num_steps)

    def _train(self) -> None:
        torch.set_num_threads(1)
        try:
            ending = train(self._build, self._membership, begins_run=True, options=self._options)
            self._gate.ended(f"the loop has {ending.value}")
        except BaseException:
            self._gate.ended(traceback.format_exc())


def form_group(name: str, site: Site) -> PartitionGroup:
    """Form the worker's partition group, of the size that a system's name says."""
    size = int(settings_of(name)["p"])
    ranks = [list(range(first, first + size)) for first in range(0, dist.get_world_size(), size)]
    return form_partition_group(ranks, list(site.nodes_of_ranks), torch.device("cpu"))
