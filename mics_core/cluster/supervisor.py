"""The supervisor of a job: a thin shell of I/O around the membership machine.

One named actor a job. It feeds the machine with what workers, runners, clients and the clock say,
carries out its decisions, and keeps the journal that everybody watches. No step waits for it. It
outlives the driver, is started anew when it is killed, and ends itself after the run.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from functools import partial
from typing import Any

import ray.util

from mics_core.cluster.course import Course
from mics_core.cluster.drains import draining_nodes
from mics_core.cluster.figures import JobFigures
from mics_core.cluster.groups import GroupRuns
from mics_core.cluster.journal import Bell, Journal
from mics_core.cluster.last_words import leave_last_words
from mics_core.cluster.lifeline import LifelineAddress, Lifelines
from mics_core.cluster.memory import Memory
from mics_core.cluster.messages import Message
from mics_core.cluster.reaching import SupervisorHandle
from mics_core.cluster.record import Record
from mics_core.cluster.reports import Reports
from mics_core.elastic import events as elastic
from mics_core.elastic.machine import MembershipMachine
from mics_core.elastic.plan import GenerationPlan, StoreAddress, plan_of
from mics_core.errors import JobConflictError
from mics_core.planner.strategy import Strategy
from mics_core.spec import parse_job_spec
from mics_core.spec.changes import GroupsChange
from mics_core.spec.last_words import LastWords
from mics_core.spec.status import GroupState, JobState, JobStatus

__all__ = ["JobSupervisor"]

logger = logging.getLogger(__name__)

_START_S = 60.0
_TICK_S = 0.5
_DRAINS_S = 1.0
_REGROUPED_WITHIN_S = 10.0
_LAST_RUNS_S = 30.0
_LAST_READERS_S = 5.0
_LAST_KILLS_S = 5.0
_LAST_WORDS_S = 10.0
_FORGET_S = 5.0
_READER_S = 0.1


class JobSupervisor:
    """Actor that decides the membership of one job's replication groups.

    Args:
        job_id: The job.
        spec: Its specification as plain data.
        partition_size: Workers in one partition group.
        strategy: How a partition group moves its model states.
        storage_path: Folder for Ray Train's own files.
        figures: What its speed is held against.
        after: Sequence number of the job's last event before it was paused, if it was.
    """

    def __init__(
        self,
        job_id: str,
        spec: dict[str, Any],
        partition_size: int,
        strategy: Strategy,
        storage_path: str,
        figures: JobFigures,
        after: int = 0,
    ) -> None:
        self._job_id = job_id
        self._spec = parse_job_spec(spec)
        self._partition_size = partition_size
        supervisor_id = ray.get_runtime_context().get_actor_id()
        assert supervisor_id is not None
        self._record = Record(job_id, supervisor_id, self._remembered, after)
        self._runs = GroupRuns(
            job_id,
            self._spec,
            partition_size,
            strategy,
            storage_path,
            self._tell,
            self._until_regrouped,
            self._record,
        )
        self._lifeline: LifelineAddress | None = None
        self._news = Bell()
        self._started = asyncio.Event()
        self._has_begun = False
        self._tasks: list[asyncio.Task[None]] = []
        remembered = self._record.load()
        self._is_first = remembered is None
        if remembered is None:
            self._memory = Memory.of_new_job(self._spec, figures, after)
        else:
            self._memory, events = remembered
            self._memory.journal.put_back(events)
            self._spec = self._spec.model_copy(update={"groups": self._memory.groups})
        self._runs.runs = self._memory.runs
        self._reports = Reports(self._memory, self._runs, self._tell)
        self._lifelines = Lifelines(self._reports.note_death)
        # Nobody else may be there to begin: the driver may be gone, or this a second supervisor. A
        # call that is made before Ray knows that this one lives may fail, and is made again.
        begin = partial(SupervisorHandle(job_id).ask, "start", timeout_s=_START_S)
        threading.Thread(target=begin, name="mics-begin", daemon=True).start()

    async def start(self) -> None:
        """Begin the run, or go on with one whose supervisor is gone; does so once."""
        if self._has_begun:
            await self._started.wait()
            return
        self._has_begun = True
        if self._record.has_ended():
            logger.warning("job %s has ended: its supervisor need not have come back", self._job_id)
            self._tasks = [asyncio.create_task(self._leave())]
            self._started.set()
            return
        self._lifeline = await self._lifelines.listen(ray.util.get_node_ip_address())
        if self._is_first:
            self._tell(elastic.StartRequested())
        else:
            logger.warning("going on with job %s at step %d", self._job_id, self._course.step)
            self._runs.take_over()
        # They wait for the runs that were taken over when the job is at its end already.
        self._tasks = [
            asyncio.create_task(self._supervise()),
            asyncio.create_task(self._watch_drains()),
        ]
        await self._record.settle()
        self._started.set()

    def _remembered(self) -> tuple[Memory, Journal]:
        return self._memory, self._memory.journal

    @property
    def _machine(self) -> MembershipMachine:
        return self._memory.machine

    @property
    def _journal(self) -> Journal:
        return self._memory.journal

    @property
    def _course(self) -> Course:
        return self._memory.course

    # For clients; everything is plain data.

    async def spec(self) -> dict[str, Any]:
        """Return the job's specification."""
        return self._spec.model_dump(mode="json")

    async def status(self) -> dict[str, Any]:
        """Return the live status (`JobStatus`)."""
        return self._status().model_dump(mode="json")

    def _status(self) -> JobStatus:
        return self._memory.status(self._job_id, self._spec, self._partition_size, self._runs)

    async def events(self, after: int, timeout_s: float) -> list[dict[str, Any]]:
        """Return the events after a sequence number; wait for one up to the time limit."""
        events = await self._journal.after(after, timeout_s)
        await self._record.settle()
        return [event.model_dump(mode="json") for event in events]

    async def scale(self, change: GroupsChange, reason: str) -> dict[str, Any]:
        """Change the wanted number of partition groups, and its bounds; return the status.

        Raises:
            ScaleError: Outside the job's bounds, or they cannot be.
            JobConflictError: The job is ending.
        """
        self._check_live("scaled")
        wanted, bounds = self._machine.wanted, self._spec.groups
        groups = change.applied_to(self._spec, wanted, self._partition_size)
        now = (groups.minimum, groups.wanted, groups.upper_bound)
        if now != (bounds.minimum, wanted, bounds.upper_bound):
            self._memory.groups = groups
            self._spec = self._spec.model_copy(update={"groups": groups})
            self._journal.scale(groups.wanted, reason, change)
            self._tell(elastic.WantedChanged(groups.wanted, reason, groups.minimum))
        await self._record.settle()
        return await self.status()

    async def pause(self, reason: str) -> dict[str, Any]:
        """Write a checkpoint at the next step boundary and end there; return the status.

        Raises:
            JobConflictError: The job is ending, or writes no checkpoints.
        """
        self._check_live("paused")
        if self._spec.checkpoint.directory is None:
            raise JobConflictError(
                f"Job {self._job_id} cannot be paused: it writes no checkpoints.",
                field="checkpoint.directory",
                remedy="Submit it with checkpoint.directory set to a folder that all nodes see.",
            )
        self._memory.ending = "being paused"
        self._tell(elastic.PauseRequested(reason))
        await self._record.settle()
        return await self.status()

    async def cancel(self, reason: str) -> dict[str, Any]:
        """Stop the job at the next step boundary; return the status.

        Raises:
            JobConflictError: The job is ending already.
        """
        self._check_live("cancelled")
        self._memory.ending = "being cancelled"
        self._tell(elastic.CancelRequested(reason))
        await self._record.settle()
        return await self.status()

    def _check_live(self, verb: str) -> None:
        state = self._memory.state
        if state.is_at_rest or self._memory.ending:
            shown = state.value if state.is_at_rest else self._memory.ending
            raise JobConflictError(
                f"Job {self._job_id} is {shown} and cannot be {verb}.",
                remedy="Wait for that; then resume it if it is paused, or submit a new job.",
            )

    # For the workers.

    async def lifeline(self) -> LifelineAddress:
        """Return where workers connect for as long as they live."""
        await self._started.wait()
        assert self._lifeline is not None
        return self._lifeline

    async def newest_generation(
        self, after: int, timeout_s: float
    ) -> tuple[GenerationPlan | None, int]:
        """Wait up to the limit for a generation above `after`.

        Returns:
            The newest generation's plan, none before the first, and the number of the newest one
            that was announced because a member is gone.
        """
        if self._machine.generation <= after:
            await self._news.wait(timeout_s)
        newest = self._memory.plans.get(self._machine.generation), self._memory.after_loss
        await self._record.settle()
        return newest

    async def next_plan(self, group_id: int, after: int, timeout_s: float) -> GenerationPlan | None:
        """Return the newest plan above `after` that concerns a group, or none after the limit.

        A group that never was a member waits for a plan that names it; one that was a member, or
        that has been evicted, also takes a plan without it, and leaves.
        """
        deadline = time.monotonic() + timeout_s
        while (plan := self._plan_for(group_id, after)) is None and time.monotonic() < deadline:
            await self._news.wait(deadline - time.monotonic())
        await self._record.settle()
        return plan

    def _plan_for(self, group_id: int, after: int) -> GenerationPlan | None:
        if not self._runs.is_alive(group_id):
            return GenerationPlan(after + 1, (), None, "This group was evicted.")
        plans = self._memory.plans
        plan = plans.get(self._machine.generation)
        if plan is None or plan.number <= after:
            return None
        was_member = any(group_id in known.groups for known in plans.values())
        return plan if was_member or group_id in plan.groups else None

    async def plan(self, number: int) -> GenerationPlan:
        """Return the plan of an announced generation."""
        await self._record.settle()
        return self._memory.plans[number]

    async def report(self, group_id: int, messages: list[Message]) -> None:
        """Take in what a worker of a group reports; messages that come twice do no harm."""
        for message in messages:
            self._reports.take_in(group_id, message)
        self._record.touch()
        await self._record.settle()

    async def _until_regrouped(self) -> None:
        deadline = time.monotonic() + _REGROUPED_WITHIN_S
        while self._course.newest_trained < self._memory.after_loss:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            await self._course.committed.wait(left_s)

    # The machine and its decisions.

    async def _supervise(self) -> None:
        await self._tick()
        await self._end()

    async def _end(self) -> None:
        """End this actor, which outlives its driver, and with it all that is left of the job."""
        await self._record.settle()  # one that is started anew from now on ends, too
        await self._runs.wait_until_ended(_LAST_RUNS_S)
        deadline = time.monotonic() + _LAST_READERS_S
        while self._journal.unread and time.monotonic() < deadline:
            await asyncio.sleep(_READER_S)
        await self._runs.kill_all(_LAST_KILLS_S)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._leave_last_words), _LAST_WORDS_S)
        except Exception:
            logger.exception("the last words of job %s could not be left", self._job_id)
        await self._leave()

    async def _leave(self) -> None:
        """Forget the job, and end this actor whether that worked or not."""
        while True:
            try:
                try:
                    await asyncio.wait_for(self._record.end(), _FORGET_S)
                finally:
                    ray.kill(ray.get_runtime_context().current_actor)
                return
            except Exception:  # Ray's head may be away for a while
                logger.exception("the supervisor of job %s has to try again to end", self._job_id)
            await asyncio.sleep(_TICK_S)

    def _leave_last_words(self) -> None:
        first, last = self._journal.first_sequence, self._journal.last_sequence
        events = self._journal.slice(first, last)
        words = LastWords(spec=self._spec, status=self._status(), events=events)
        leave_last_words(self._job_id, words)

    async def _tick(self) -> None:
        while not self._memory.state.is_at_rest:
            await asyncio.sleep(_TICK_S)
            try:
                self._course.note_overdue()
                step_s = self._journal.foretold_step_s(len(self._machine.members))
                self._tell(elastic.Tick(step_s, self._memory.quiet_s, self._course.step))
            except Exception:
                # Launches, evictions and the grace of the start hang on this task: it must go on.
                logger.exception("a tick failed")

    async def _watch_drains(self) -> None:
        """A task of its own: Ray's head may take its time to answer."""
        while not self._memory.state.is_at_rest:
            await asyncio.sleep(_DRAINS_S)
            try:
                for node, reason in (await asyncio.to_thread(draining_nodes)).items():
                    for group_id in self._runs.groups_on(node):
                        self._tell(elastic.GroupDraining(group_id, reason))
            except Exception:
                logger.exception("Ray does not say which nodes are draining")

    def _tell(self, event: elastic.Event) -> None:
        self._record.touch()
        for decision in self._machine.handle(event, self._memory.clock()):
            self._carry_out(decision)
        if isinstance(event, elastic.GroupEntered) and self._memory.note_loss():
            self._news.ring()

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
                before = self._memory.plans.get(number - 1)
                after_loss = self._memory.note_loss()
                usual_step_s = self._journal.foretold_step_s(len(groups))
                self._memory.plans[number] = plan_of(decision, store, before, usual_step_s)
                self._memory.heard_at = self._memory.clock()  # its members have all their time
                self._course.announce(number, groups, reason, after_loss=after_loss)
                self._news.ring()
            case elastic.SetRunPhase(phase, reason):
                logger.info("the job is %s: %s", phase, reason)
                state = JobState(phase)
                if state.is_at_rest:
                    self._course.end()
                if state is JobState.PAUSED:
                    reason = f"{reason} {self._memory.where_it_goes_on()}"
                self._journal.state(state, reason)

    def _store_of(self, group_id: int) -> StoreAddress:
        run = self._runs.get(group_id)
        assert run is not None
        leader = run.workers[0]
        assert leader.store_port is not None
        return StoreAddress(leader.host, leader.store_port)
