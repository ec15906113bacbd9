"""A worker's link to the supervisor: the engine's `Membership`, kept off the step's path.

Two threads do the talking. One waits at the supervisor for news of generations; the other sends
reports, a batch at a time, until they are heard. A step only reads a number and appends to a queue.
While the supervisor is being started anew both wait for it, and the worker trains on.

A supervisor that does not answer, or that Ray cannot reach, is asked again for as long as there is
one: its silence says nothing of this worker, which may hold the only copy of the states.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from mics_core.cluster.connection import first_line
from mics_core.cluster.messages import (
    Checkpointed,
    Committed,
    Ended,
    Entered,
    Failed,
    Message,
    Missed,
    ReplicationBroke,
)
from mics_core.cluster.reaching import SupervisorGoneError, SupervisorHandle
from mics_core.elastic.plan import GenerationPlan
from mics_core.engine.checkpoint import CheckpointReport
from mics_core.engine.membership import ASKED_WITHIN_S
from mics_core.engine.summary import StepCommit
from mics_core.errors import ClusterError

__all__ = ["SupervisorLink"]

logger = logging.getLogger(__name__)

_WATCH_S = 20.0
_BACK_WITHIN_S = 20.0
"""With twice `_WATCH_S` before and after it, less than a worker waits for its group's leader."""
assert 4 * _WATCH_S + _BACK_WITHIN_S < ASKED_WITHIN_S
_FLUSH_S = 10.0
_AGAIN_S = 1.0


class SupervisorLink:
    """Implements `mics_core.engine.membership.Membership` for a worker of a Ray Train run.

    Args:
        supervisor: The job's supervisor.
        group_id: The worker's partition group.
        rank: The worker's rank in it.
    """

    def __init__(self, supervisor: SupervisorHandle, group_id: int, rank: int):
        self._supervisor = supervisor
        self._group_id = group_id
        self._rank = rank
        self._pending = self._after_loss = 0
        self._newest: GenerationPlan | None = None
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._has_ended = False
        self._last_commit: float | None = None
        self._threads = [
            threading.Thread(target=target, name=f"mics-{target.__name__.strip('_')}", daemon=True)
            for target in (self._watch, self._send)
        ]

    def start(self) -> None:
        """Start the two threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Send what is queued, and stop.

        Who has ended in order goes when that was heard, or nobody is left to hear it: without this
        word its group counts as lost, and a run as unfinished. An error is told by Ray Train too.
        """
        self._closed.set()
        self._outbox.put(None)
        self._threads[1].join(timeout=None if self._has_ended else _FLUSH_S)

    def send(self, message: Message) -> None:
        """Queue a report."""
        self._outbox.put(message)

    # The engine's view.

    @property
    def group_id(self) -> int:
        """Id of this worker's partition group."""
        return self._group_id

    @property
    def outlives_losses(self) -> bool:
        """Return True: the supervisor announces the next generation."""
        return True

    def pending(self) -> int:
        """Return the highest generation number heard of."""
        return self._pending

    def announced(self) -> GenerationPlan | None:
        """Return the newest plan that is here already."""
        return self._newest

    def after_loss(self) -> int:
        """Return the highest generation heard of that was announced because a member is gone."""
        return self._after_loss

    def next_plan(self, after: int) -> GenerationPlan | None:
        """Wait a while for a generation above `after` that concerns this group.

        Who has heard of one that it is part of need not ask.
        """
        newest = self._newest
        if newest is not None and newest.number > after and self._group_id in newest.groups:
            return newest
        plan = self._plan_or_none("next_plan", self._group_id, after, _WATCH_S)
        if plan is not None:
            self._pending = max(self._pending, plan.number)
        return plan

    def plan(self, number: int) -> GenerationPlan | None:
        """Return the plan of an announced generation; who has heard of it has it here already."""
        if self._newest is not None and self._newest.number == number:
            return self._newest
        return self._plan_or_none("plan", number)

    def entered(self, generation: int, step: int, connect_s: float) -> None:
        """Report that this worker trains under `generation` from `step` on."""
        if self._last_commit is None:
            self._last_commit = time.perf_counter()
        self.send(Entered(self._rank, generation, step, connect_s))

    def committed(self, commit: StepCommit, took_s: float) -> None:
        """Report a committed step; rank 0 does so for its partition group."""
        if self._rank != 0:
            return
        now = time.perf_counter()
        # A newcomer that still catches up has seen no commit before; its report may be the first.
        step_s = now - self._last_commit if self._last_commit is not None else took_s
        self._last_commit = now
        self.send(Committed(commit, step_s, took_s, time.time()))

    def broken(self, generation: int, step: int, error: str, *, has_state: bool) -> None:
        """Report that this worker's replication group broke, and whether it holds a whole state."""
        self.send(ReplicationBroke(self._rank, generation, step, error, has_state))

    def missed(self, generation: int, groups: tuple[int, ...]) -> None:
        """Report groups that have not come to a generation yet."""
        self.send(Missed(self._rank, generation, groups))

    def checkpointed(self, report: CheckpointReport) -> None:
        """Report how a checkpoint ended."""
        self.send(Checkpointed(self._rank, report.step, report.path, report.error))

    def failed(self, step: int, error: str, own_error: bool) -> None:
        """Report that this worker's loop ended with an error."""
        self.send(Failed(self._rank, step, error, own_error))

    def ended(self, finished: bool) -> None:
        """Report that this worker's loop came to its end."""
        self._has_ended = True
        self.send(Ended(self._rank, finished))

    # Asking.

    def _plan_or_none(self, method: str, *arguments: object) -> GenerationPlan | None:
        try:
            plan: GenerationPlan | None = self._ask(method, *arguments)
        except SupervisorGoneError:
            raise
        except ClusterError as error:
            logger.warning("there is no plan yet: %s", error)
            self._closed.wait(_AGAIN_S)
            return None
        return plan

    def _ask(self, method: str, *arguments: object) -> Any:
        """Ask the supervisor once.

        Raises:
            SupervisorGoneError: There is none any more.
            ClusterError: There is no answer now, but may be later.
            RayError: There will be none: this process is being shut down, or the supervisor's own
                code failed.
        """
        try:
            return self._supervisor.ask(
                method, *arguments, timeout_s=2 * _WATCH_S, back_within_s=_BACK_WITHIN_S
            )
        except RayTaskError:
            raise
        except RayError as error:
            if not ray.is_initialized():
                raise
            raise ClusterError(f"Ray cannot reach the supervisor: {first_line(error)}") from error

    # The threads.

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                newest, after_loss = self._ask("newest_generation", self._pending, _WATCH_S)
                self._after_loss = max(self._after_loss, after_loss)
                if newest is not None:
                    self._newest = newest
                    self._pending = max(self._pending, newest.number)
            except SupervisorGoneError as error:
                logger.error("there will be no news of generations: %s", error)
                return
            except (ClusterError, RayTaskError) as error:
                logger.warning("there is no news of generations: %s", error)
                self._closed.wait(_AGAIN_S)
            except RayError:
                return  # this process is being shut down

    def _send(self) -> None:
        going = True
        while going:
            batch = [self._outbox.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(self._outbox.get_nowait())
            going = None not in batch
            messages = [message for message in batch if message is not None]
            if messages:
                self._report(messages)

    def _report(self, messages: list[Message]) -> None:
        """Send reports until they are heard: without one of them a group might wait for ever."""
        while True:
            try:
                self._ask("report", self._group_id, messages)
            except (SupervisorGoneError, RayTaskError) as error:
                logger.error("%d reports are lost: %s", len(messages), error)
            except ClusterError as error:
                logger.warning("%d reports are sent again: %s", len(messages), error)
                # Not on `_closed`: once it is set, that would try again without a pause.
                time.sleep(_AGAIN_S)
                continue
            except RayError:
                pass  # this process is being shut down
            return
