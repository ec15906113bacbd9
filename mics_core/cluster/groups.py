"""The runs of a job's partition groups: reserving nodes, starting, watching and ending them.

[Note: handing room over]
A group's nodes are found by a reservation, which then has to be given up so that Ray Train can
reserve the same room for itself. In between, the room is anybody's:

- A reservation of the same job that waits for room would take it. So those that wait are withdrawn
  while any room is handed over, and made again afterwards.
- A run that is killed before its workers have started leaves Ray Train's reservation behind until
  the job ends. So a group that is stopped then is left to start; its workers learn that it is no
  part of the job any more, and the run ends in order. One that does not is ended later.

The room is the run's once all its workers run, whatever they do with it. Ray Train takes note of
that a moment later than they do, and leaves its reservation behind if they are gone by then. So the
room is taken to be handed over a few seconds after they run, or when they are ready.

[Note: ending a group]
A run whose controller is killed while it shuts down leaves its reservation behind too. (All of this
was seen with a controller that is an actor. Where it runs in the runner, Ray takes the reservation
of one that is killed back; it can be either, see `mics_core.cluster.group_trainer`.) So a group is
ended by killing its workers, which can then do nothing any more; the run sees that, gives its
room back and ends by itself. Only one that does not is killed whole.

[Note: starting after a loss]
Room for a group in another's place is asked for at once, for it may have to be created. But its
processes start only when the survivors have committed a step again: where they share machines with
it they would have to share their processors while everybody waits for them.

[Note: taking runs over]
Runners outlive a supervisor. The next one, which remembers the groups, finds each runner by its
name and waits for its run as the first did. A group whose run had not begun begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from mics_core.cluster.head_calls import HeadCalls
from mics_core.cluster.journal import Bell
from mics_core.cluster.messages import Ready, Started
from mics_core.cluster.pace import Pace
from mics_core.cluster.placement import Reservation, reserve, worker_resources
from mics_core.cluster.record import Record
from mics_core.cluster.runner import RunSettings, find_runner, start_runner
from mics_core.cluster.worker_config import WorkerConfig
from mics_core.elastic import events as elastic
from mics_core.errors import ClusterError
from mics_core.planner.strategy import Strategy
from mics_core.spec.job import JobSpec
from mics_core.spec.status import WorkerStatus

__all__ = ["GroupRun", "GroupRuns"]

logger = logging.getLogger(__name__)

_LEAVES_WITHIN_S = 180.0
_ENDS_WITHIN_S = 30.0
_NOTED_WITHIN_S = 5.0


@dataclass(slots=True)
class _Here:
    """What belongs to a run in this process."""

    task: asyncio.Task[None] | None = None
    waiting: asyncio.Future[tuple[str, ...]] | None = None
    runner: Any = None

    def __reduce__(self) -> tuple[type[_Here], tuple[()]]:
        return _Here, ()


@dataclass(slots=True)
class GroupRun:
    """One partition group's run, as far as it has come."""

    group_id: int
    begins_run: bool
    here: _Here = field(default_factory=_Here)
    reservation: Reservation | None = None
    nodes: tuple[str, ...] = ()
    begun: bool = False
    actors: dict[int, Any] = field(default_factory=dict)
    workers: dict[int, Ready] = field(default_factory=dict)
    step: int = 0
    entered: int = 0
    entered_at: int = 0
    trained: int = 0
    finished: bool = False
    stopped: bool = False
    ended: bool = False
    first_error: str = ""
    pace: Pace = field(default_factory=Pace)


class GroupRuns:
    """All runs of a job.

    Args:
        job_id: The job.
        spec: Its specification.
        partition_size: Workers in one partition group.
        strategy: How a partition group moves its model states.
        storage_path: Folder for Ray Train's own files.
        tell: Takes what happens to the groups.
        regrouped: Waits until those who survived a loss train again, or for a while.
        record: Where the runs are remembered.
    """

    def __init__(
        self,
        job_id: str,
        spec: JobSpec,
        partition_size: int,
        strategy: Strategy,
        storage_path: str,
        tell: Callable[[elastic.Event], None],
        regrouped: Callable[[], Awaitable[None]],
        record: Record,
    ):
        self._job_id = job_id
        self._spec = spec
        self._partition_size = partition_size
        self._strategy = strategy
        self._storage_path = storage_path
        self._tell = tell
        self._regrouped = regrouped
        self._record = record
        self.runs: dict[int, GroupRun] = {}
        """The runs by group, ended ones too."""
        self._handing_over: set[int] = set()
        self._settled = Bell()
        self._head = HeadCalls()

    def get(self, group_id: int) -> GroupRun | None:
        """Return a group's run, also when it has ended."""
        return self.runs.get(group_id)

    def is_alive(self, group_id: int) -> bool:
        """Whether a group is part of the job and has not been stopped."""
        run = self.runs.get(group_id)
        return run is not None and not run.stopped

    def workers_of(self, group_id: int) -> list[WorkerStatus]:
        """Return the workers of a group by rank, as far as they have reported."""
        run = self.runs.get(group_id)
        if run is None:
            return []
        return [
            WorkerStatus(
                rank=rank,
                node_id=worker.node_id,
                host=worker.host,
                pid=worker.pid,
                step=run.step,
            )
            for rank, worker in sorted(run.workers.items())
        ]

    def groups_on(self, node_id: str) -> list[int]:
        """Return the groups that have been placed on a node and not been stopped."""
        return [
            group_id
            for group_id, run in self.runs.items()
            if node_id in run.nodes and not run.stopped
        ]

    def add_actor(self, run: GroupRun, worker: Started) -> None:
        """Take in that a worker runs."""
        run.actors[worker.rank] = worker.actor
        if self.has_started(run):  # see [Note: handing room over]
            loop = asyncio.get_running_loop()
            loop.call_later(_NOTED_WITHIN_S, self._end_hand_over, run)

    def has_started(self, run: GroupRun) -> bool:
        """Whether all workers of a group run, or have run."""
        return len(run.actors) == self._partition_size

    def add_worker(self, run: GroupRun, worker: Ready) -> bool:
        """Take in that a worker is ready; return whether all workers of its group are."""
        run.workers[worker.rank] = worker
        is_complete = len(run.workers) == self._partition_size
        if is_complete:
            self._end_hand_over(run)
        return is_complete

    def launch(self, group_id: int, begins_run: bool) -> None:
        """Ask for nodes for a group and start it there, in the background."""
        run = self.runs[group_id] = GroupRun(group_id, begins_run)
        run.here.task = asyncio.create_task(self._live(run))

    def take_over(self) -> None:
        """Go on with the runs of a supervisor that is gone; see [Note: taking runs over]."""
        for run in list(self.runs.values()):
            if run.ended or run.here.task is not None:
                continue
            run.here.runner = find_runner(self._job_id, run.group_id)
            if not run.begun:
                self._clean_up(run)
                self._tell(elastic.GroupUnplaced(run.group_id))
            elif not self.has_started(run):
                self._handing_over.add(run.group_id)
            run.here.task = asyncio.create_task(self._live(run))
            if run.stopped:
                self._end(run)

    def stop(self, group_id: int, reason: str) -> None:
        """End whatever is left of a group."""
        run = self.runs.get(group_id)
        if run is None or run.stopped:
            return
        logger.info("stopping group %d: %s", group_id, reason)
        run.stopped = True
        self._end(run)

    def _end(self, run: GroupRun) -> None:
        if run.group_id in self._handing_over:  # see [Note: handing room over]
            asyncio.get_running_loop().call_later(_LEAVES_WITHIN_S, self._end_workers, run)
        else:
            self._end_workers(run)

    def _end_workers(self, run: GroupRun) -> None:
        """See [Note: ending a group]."""
        if run.ended or not run.actors:
            self._kill(run)
            return
        for actor in run.actors.values():
            self._head.later(ray.kill, actor)
        asyncio.get_running_loop().call_later(_ENDS_WITHIN_S, self._kill, run)

    async def wait_until_ended(self, timeout_s: float) -> None:
        """Wait until the runs of all groups have ended and given their room back."""
        tasks = [run.here.task for run in self.runs.values() if run.here.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def kill_all(self, timeout_s: float) -> None:
        """End all that is left, whatever it does; waits until Ray has heard of it."""
        for run in self.runs.values():
            self._kill(run)
        await self._head.wait_for_all_before(timeout_s)

    def _kill(self, run: GroupRun) -> None:
        if run.here.task is not None:
            run.here.task.cancel()
        self._clean_up(run)

    async def _live(self, run: GroupRun) -> None:
        """One group's life, from its reservation to its end."""
        group_id = run.group_id
        try:
            await self._run(run)
        except asyncio.CancelledError:
            return  # `stop` was called, and says so itself
        except Exception as error:
            # Everything that can go wrong here means the same: this group is gone.
            logger.info("group %d: %r", group_id, error)
            if run.finished:  # its work was done; only its end went wrong
                self._tell(elastic.GroupEnded(group_id, finished=True))
            else:
                reason = run.first_error or _described(error, run.nodes)
                self._tell(elastic.GroupLost(group_id, reason, own_error=False))
        else:
            self._tell(elastic.GroupEnded(group_id, run.finished))
        finally:
            run.stopped = run.ended = True
            self._record.touch()
            self._end_hand_over(run)
            self._clean_up(run)

    async def _run(self, run: GroupRun) -> None:
        if not run.begun:
            await self._place(run)
        if run.here.runner is None:
            where = _runner_of(run.nodes)
            raise ClusterError(f"{where} died while the job had no supervisor.")
        await run.here.runner.run.remote(self._settings(run))

    async def _place(self, run: GroupRun) -> None:
        """Find nodes for a group, and start its runner there."""
        run.nodes = await self._reserve(run, f"{self._job_id}-group-{run.group_id}")
        self._tell(elastic.GroupPlaced(run.group_id))
        await self._regrouped()  # see [Note: starting after a loss]
        await self._record.settle()  # whoever takes over must know of the runner
        start = partial(start_runner, self._job_id, run.group_id, run.nodes, self._spec)
        run.here.runner = await self._head.ask(start, undo=ray.kill)
        await run.here.runner.prepare.remote()
        await self._begin_hand_over(run)
        run.begun = True
        self._record.touch()
        await self._record.settle()

    def _settings(self, run: GroupRun) -> RunSettings:
        return RunSettings(
            name=f"{self._job_id}-group-{run.group_id}",
            storage_path=self._storage_path,
            worker=WorkerConfig(
                job_id=self._job_id,
                group_id=run.group_id,
                begins_run=run.begins_run,
                spec=self._spec.model_dump(mode="json"),
                partition_size=self._partition_size,
                strategy=self._strategy,
            ),
            resources_per_worker=worker_resources(self._spec.resources),
            nodes_of_workers=run.nodes,
        )

    # See [Note: handing room over].

    async def _reserve(self, run: GroupRun, name: str) -> tuple[str, ...]:
        """Wait for room; return the node id of each worker, by rank."""
        ask = partial(reserve, self._partition_size, self._spec.resources, name)
        while True:
            while self._handing_over:
                await self._settled.wait(_LEAVES_WITHIN_S)
            reservation = await self._head.ask(ask, undo=Reservation.release)
            if self._handing_over:  # since it was asked for
                self._head.later(reservation.release)
                continue
            run.reservation = reservation
            run.here.waiting = asyncio.ensure_future(reservation.wait())
            try:
                return await run.here.waiting
            except asyncio.CancelledError:
                if run.stopped or run.reservation is reservation:
                    raise  # it was not withdrawn: the group is being stopped
            finally:
                run.here.waiting = None

    async def _begin_hand_over(self, run: GroupRun) -> None:
        """Give a group's reservation up for its run."""
        self._handing_over.add(run.group_id)
        for other in [*self.runs.values()]:
            waiting, reservation = other.here.waiting, other.reservation
            if (
                waiting is None
                or reservation is None
                or await self._head.ask(reservation.is_placed)
            ):
                continue
            if other.reservation is reservation and waiting.cancel():
                self._release(other)
        self._release(run)

    def _end_hand_over(self, run: GroupRun) -> None:
        if run.group_id in self._handing_over:
            self._handing_over.discard(run.group_id)
            self._settled.ring()

    def _clean_up(self, run: GroupRun) -> None:
        self._release(run)
        if run.here.runner is not None:
            # The run's controller and workers are children of the runner and end with it.
            self._head.later(ray.kill, run.here.runner)
            run.here.runner = None

    def _release(self, run: GroupRun) -> None:
        if run.reservation is not None:
            self._head.later(run.reservation.release)
            run.reservation = None


def _runner_of(nodes: Sequence[str]) -> str:
    return f"Its runner on node {nodes[0][:8]}" if nodes else "Its runner"


def _described(error: Exception, nodes: Sequence[str]) -> str:
    if isinstance(error, ClusterError):
        return str(error)
    if isinstance(error, RayActorError):
        return f"{_runner_of(nodes)} died: the process or the node is gone."
    if isinstance(error, RayTaskError):
        cause = str(error.cause) if error.cause is not None else str(error)
        lines = [line for line in cause.strip().splitlines() if line.strip()]
        return f"Its run failed: {lines[-1] if lines else type(error.cause).__name__}"
    if isinstance(error, RayError):
        return f"Ray ended its run: {str(error).splitlines()[0]}"
    return f"It could not be started: {type(error).__name__}: {error}"
