"""The supervisor of a job: a thin shell of I/O around the membership machine.

One named actor a job. It feeds the machine with what workers, runners, clients and the clock say,
carries out its decisions, and keeps the journal that everybody watches. No step waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import ray.util

from mics_core.cluster.course import Course
from mics_core.cluster.drains import draining_nodes
from mics_core.cluster.groups import GroupRun, GroupRuns
from mics_core.cluster.journal import Bell, Journal
from mics_core.cluster.lifeline import LifelineAddress, Lifelines
from mics_core.cluster.messages import (
    Checkpointed,
    Committed,
    Ended,
    Entered,
    Failed,
    Message,
    Ready,
    ReplicationBroke,
)
from mics_core.elastic import events as elastic
from mics_core.elastic.machine import MembershipMachine, Rules
from mics_core.elastic.plan import GenerationPlan, StoreAddress
from mics_core.engine.summary import StepCommit
from mics_core.errors import JobConflictError, ScaleError
from mics_core.planner.strategy import Strategy
from mics_core.spec import parse_job_spec
from mics_core.spec.status import (
    GroupState,
    GroupStatus,
    JobState,
    JobStatus,
)

__all__ = ["JobSupervisor"]

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_DRAINS_S = 1.0
_REGROUPED_WITHIN_S = 10.0


class JobSupervisor:
    """Actor that decides the membership of one job's replication groups.

    Args:
        job_id: The job.
        spec: Its specification as plain data.
        partition_size: Workers in one partition group.
        strategy: How a partition group moves its model states.
        storage_path: Folder for Ray Train's own files.
    """

    def __init__(
        self,
        job_id: str,
        spec: dict[str, Any],
        partition_size: int,
        strategy: Strategy,
        storage_path: str,
    ) -> None:
        self._job_id = job_id
        self._spec = parse_job_spec(spec)
        self._partition_size = partition_size
        self._created = time.time()
        groups = self._spec.groups
        self._machine = MembershipMachine(
            Rules(groups.minimum, groups.wanted, silence_s=groups.silence_s)
        )
        self._journal = Journal()
        self._course = Course(self._journal, self._spec.training.global_batch_size)
        self._runs = GroupRuns(
            job_id,
            self._spec,
            partition_size,
            strategy,
            storage_path,
            self._tell,
            self._until_regrouped,
        )
        self._plans: dict[int, GenerationPlan] = {}
        self._after_loss = 0
        self._lifelines = Lifelines(self._note_death)
        self._lifeline: LifelineAddress | None = None
        self._news = Bell()
        self._cancelling = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin the run."""
        self._lifeline = await self._lifelines.listen(ray.util.get_node_ip_address())
        self._tell(elastic.StartRequested())
        self._tasks = [asyncio.create_task(self._tick()), asyncio.create_task(self._watch_drains())]

    # For clients; everything is plain data.

    async def spec(self) -> dict[str, Any]:
        """Return the job's specification."""
        return self._spec.model_dump(mode="json")

    async def status(self) -> dict[str, Any]:
        """Return the live status (`JobStatus`)."""
        return self._status().model_dump(mode="json")

    async def events(self, after: int, timeout_s: float) -> list[dict[str, Any]]:
        """Return the events after a sequence number; wait for one up to the time limit."""
        return [
            event.model_dump(mode="json") for event in await self._journal.after(after, timeout_s)
        ]

    async def scale(self, wanted: int, reason: str) -> dict[str, Any]:
        """Change the wanted number of partition groups; return the status.

        Raises:
            ScaleError: Outside the job's bounds.
            JobConflictError: The job is ending.
        """
        low, high = self._spec.groups.minimum, self._spec.groups.upper_bound
        self._check_live("scaled")
        if not low <= wanted <= high:
            raise ScaleError(
                f"{wanted} partition groups are outside the job's bounds {low} to {high}.",
                field="groups",
                remedy=f"Ask for {low} to {high}; the bounds are groups.minimum and groups.maximum"
                " of the specification.",
            )
        if wanted != self._machine.wanted:
            self._journal.scale(wanted, reason)
            self._tell(elastic.WantedChanged(wanted, reason))
        return await self.status()

    async def cancel(self, reason: str) -> dict[str, Any]:
        """Stop the job at the next step boundary; return the status.

        Raises:
            JobConflictError: The job is ending already.
        """
        self._check_live("cancelled")
        self._cancelling = True
        self._tell(elastic.CancelRequested(reason))
        return await self.status()

    def _check_live(self, verb: str) -> None:
        state = self._state
        if state.is_final or self._cancelling:
            shown = state.value if state.is_final else "being cancelled"
            raise JobConflictError(
                f"Job {self._job_id} is {shown} and cannot be {verb}.",
                remedy="Submit a new job if you want to go on.",
            )

    # For the driver.

    async def unread(self) -> int:
        """Return how many events no reader has taken yet."""
        return self._journal.last_sequence - self._journal.read_up_to

    async def wait_until_ended(self, timeout_s: float) -> None:
        """Wait until the runs of all groups have ended and given their room back."""
        await self._runs.wait_until_ended(timeout_s)

    # For the workers.

    async def lifeline(self) -> LifelineAddress:
        """Return where workers connect for as long as they live."""
        assert self._lifeline is not None, "the run has not begun"
        return self._lifeline

    async def newest_generation(self, after: int, timeout_s: float) -> tuple[int, int]:
        """Wait up to the limit for a generation above `after`.

        Returns:
            The newest generation's number, and that of the newest one that was announced because a
            member is gone.
        """
        if self._machine.generation <= after:
            await self._news.wait(timeout_s)
        return self._machine.generation, self._after_loss

    async def next_plan(self, group_id: int, after: int, timeout_s: float) -> GenerationPlan | None:
        """Return the newest plan above `after` that concerns a group, or none after the limit.

        A group that never was a member waits for a plan that names it; one that was a member, or
        that has been evicted, also takes a plan without it, and leaves.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not self._runs.is_alive(group_id):
                return GenerationPlan(after + 1, (), None, "This group was evicted.")
            plan = self._plans.get(self._machine.generation)
            if plan is not None and plan.number > after:
                was_member = any(group_id in known.groups for known in self._plans.values())
                if was_member or group_id in plan.groups:
                    return plan
            if time.monotonic() >= deadline:
                return None
            await self._news.wait(deadline - time.monotonic())

    async def plan(self, number: int) -> GenerationPlan:
        """Return the plan of an announced generation."""
        return self._plans[number]

    async def report(self, group_id: int, messages: list[Message]) -> None:
        """Take in what a worker of a group reports."""
        for message in messages:
            self._take_in(group_id, message)

    def _take_in(self, group_id: int, message: Message) -> None:
        run = self._runs.get(group_id)
        if run is None or not self._runs.is_alive(group_id):
            return  # from a group that was evicted: it has no say any more
        match message:
            case Ready():
                if self._runs.add_worker(run, message):
                    self._tell(elastic.GroupReady(group_id))
            case Entered(rank, generation, step, connect_s):
                if rank == 0:
                    run.entered, run.entered_at = generation, step
                    self._course.enter(group_id, generation, step, connect_s)
                    self._tell(elastic.GroupEntered(group_id, generation, step))
            case Committed(rank, step):
                run.steps[rank] = step + 1
                if commit := message.commit:
                    self._note_trained(run, commit)
                    self._course.commit(message)
            case ReplicationBroke(rank, generation, step, error, has_state):
                if rank == 0:
                    self._tell(elastic.GroupBroken(group_id, generation, step, error, has_state))
            case Failed(rank, step, error, own_error):
                reason = f"Rank {rank} failed at step {step}: {error}"
                if not own_error:
                    reason = f"Rank {rank} lost a worker of its group at step {step}: {error}"
                run.first_error = run.first_error or reason
                self._tell(elastic.GroupLost(group_id, reason, own_error))
            case Checkpointed(_, step, path, error):
                self._journal.checkpoint(step, path, error)
            case Ended(rank, finished):
                if rank == 0:
                    run.finished = finished

    def _note_trained(self, run: GroupRun, commit: StepCommit) -> None:
        """Tell of a group's first step under a generation; those that it listened to are none."""
        is_own = commit.generation == run.entered and commit.step >= run.entered_at
        if is_own and run.trained < run.entered:
            run.trained = run.entered
            self._tell(elastic.GroupTrained(run.group_id, run.trained))

    def _note_death(self, group_id: int, rank: int) -> None:
        run = self._runs.get(group_id)
        if run is None or not self._runs.is_alive(group_id):
            return
        where = f" on node {run.nodes[rank][:8]}" if rank < len(run.nodes) else ""
        reason = f"The process of rank {rank}{where} is gone: its connection closed."
        self._tell(elastic.GroupLost(group_id, reason))

    async def _until_regrouped(self) -> None:
        deadline = time.monotonic() + _REGROUPED_WITHIN_S
        while self._course.newest_trained < self._after_loss:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            await self._course.committed.wait(left_s)

    # The machine and its decisions.

    async def _tick(self) -> None:
        while not self._state.is_final:
            await asyncio.sleep(_TICK_S)
            try:
                self._course.note_overdue()
                self._tell(elastic.Tick(self._journal.usual_step_s))
            except Exception:
                # Launches, evictions and the grace of the start hang on this task: it must go on.
                logger.exception("a tick failed")

    async def _watch_drains(self) -> None:
        """A task of its own: Ray's head may take its time to answer."""
        while not self._state.is_final:
            await asyncio.sleep(_DRAINS_S)
            try:
                for node, reason in (await asyncio.to_thread(draining_nodes)).items():
                    for group_id in self._runs.groups_on(node):
                        self._tell(elastic.GroupDraining(group_id, reason))
            except Exception:
                logger.exception("Ray does not say which nodes are draining")

    def _tell(self, event: elastic.Event) -> None:
        for decision in self._machine.handle(event, time.monotonic()):
            self._carry_out(decision)

    def _carry_out(self, decision: elastic.Decision) -> None:
        match decision:
            case elastic.LaunchGroup(group_id, begins_run):
                self._runs.launch(group_id, begins_run)
            case elastic.StopGroup(group_id, reason):
                self._runs.stop(group_id, reason)
                self._news.ring()
            case elastic.MarkGroup(group_id, phase, reason):
                logger.info("group %d is %s: %s", group_id, phase, reason)
                self._journal.group(group_id, GroupState(phase), reason)
            case elastic.AnnounceGeneration(number, groups, reason):
                logger.info("generation %d, groups %s: %s", number, groups, reason)
                store = self._store_of(groups[0]) if groups else None
                before = self._plans.get(number - 1)
                after_loss = before is not None and not all(map(self._runs.is_alive, before.groups))
                if after_loss:
                    self._after_loss = number
                self._plans[number] = GenerationPlan(number, groups, store, reason)
                self._course.announce(number, groups, reason, after_loss=after_loss)
                self._news.ring()
            case elastic.SetRunPhase(phase, reason):
                logger.info("the job is %s: %s", phase, reason)
                if JobState(phase).is_final:
                    self._course.end()
                self._journal.state(JobState(phase), reason)

    def _store_of(self, group_id: int) -> StoreAddress:
        run = self._runs.get(group_id)
        assert run is not None
        leader = run.workers[0]
        assert leader.store_port is not None
        return StoreAddress(leader.host, leader.store_port)

    @property
    def _state(self) -> JobState:
        return JobState(self._machine.phase)

    def _status(self) -> JobStatus:
        last = self._journal.last_step
        reason = self._machine.reason
        with contextlib.suppress(IndexError):
            reason = reason or self._course.generations[-1].reason
        return JobStatus(
            job_id=self._job_id,
            name=self._spec.name,
            state=self._state,
            reason=reason,
            created=self._created,
            step=self._course.step,
            steps=self._spec.training.steps,
            loss=last.loss if last is not None else None,
            tokens_per_s=self._journal.tokens_per_s,
            generation=self._machine.generation,
            partition_size=self._partition_size,
            wanted_groups=self._machine.wanted,
            minimum_groups=self._spec.groups.minimum,
            maximum_groups=self._spec.groups.upper_bound,
            groups=[
                GroupStatus(
                    group_id=group.group_id,
                    state=GroupState(group.phase),
                    reason=group.reason,
                    workers=self._runs.workers_of(group.group_id),
                )
                for group in self._machine.groups.values()
            ],
            generations=self._course.generations,
            samples=self._course.samples,
        )
