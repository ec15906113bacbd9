"""A run in miniature: the real machine and the real engine in processes, without Ray.

Groups start in a second instead of half a minute, so that a test or a benchmark can afford many
losses.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any, Self

from benchmarks.harness.processes import process_context
from benchmarks.harness.sockets import listeners, listeners_of
from benchmarks.miniature.points import FailAt
from benchmarks.miniature.worker import Digest, News, Settings, serve
from mics_core.cluster.course import Course
from mics_core.cluster.journal import Journal
from mics_core.cluster.messages import (
    Checkpointed,
    Committed,
    Ended,
    Entered,
    Failed,
    Missed,
    Ready,
    ReplicationBroke,
)
from mics_core.comm.store import StoreHost, host_store
from mics_core.elastic import events as elastic
from mics_core.elastic.machine import MembershipMachine, Rules
from mics_core.elastic.plan import GenerationPlan, StoreAddress, has_lost_member, plan_of
from mics_core.elastic.roster import GONE
from mics_core.engine.summary import StepCommit
from mics_core.spec import JobSpec
from mics_core.spec.status import StepEvent, StepRecord

TICK_S = 0.05
DEADLINE_S = 120.0
REGROUPED_WITHIN_S = 1.0
FINAL = (elastic.RunPhase.FINISHED, elastic.RunPhase.CANCELLED, elastic.RunPhase.FAILED)


@dataclass
class Group:
    """The processes of one partition group."""

    world: StoreHost
    processes: list[ForkServerProcess]
    pipes: dict[Connection, int]
    ready: dict[int, Ready] = field(default_factory=dict)
    ended: dict[int, bool] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    breaks: list[ReplicationBroke] = field(default_factory=list)
    entered: int = 0
    entered_at: int = 0
    stopped: bool = False
    out_of_reach: bool = False
    last_words: list[Any] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes if process.pid is not None]


class Miniature:
    """A supervisor in this process; a context manager that leaves nothing behind.

    Args:
        spec: The job.
        size: Workers in one partition group.
        wanted: Groups at the start.
        minimum: Fewest groups that train.
        faults: When which worker dies.
        silence_s: After how long a group that says nothing is evicted.
        first_step_s: How long a group's first step may take.
        groups_per_node: How many groups in a row stand on one node.
        starts_quietly: Have a group that starts take what the members leave of the processors, as
            if it started on nodes of its own; needs root.
        finds_missing: Have groups evicted that others wait for at the door of a generation; not for
            runs in which a step breaks and who has committed it is held.
        ends_stalls: Have all members evicted if none says anything; not for runs that are held.
    """

    def __init__(
        self,
        spec: JobSpec,
        size: int,
        wanted: int,
        *,
        minimum: int = 1,
        faults: Sequence[FailAt] = (),
        silence_s: float = 5.0,
        first_step_s: float = 30.0,
        groups_per_node: int = 1,
        starts_quietly: bool = False,
        finds_missing: bool = False,
        ends_stalls: bool = False,
    ):
        self.spec = spec
        self.size = size
        self.machine = MembershipMachine(
            Rules(
                minimum,
                wanted,
                join_grace_s=0.1,
                silence_s=silence_s,
                first_step_s=first_step_s,
                back_off_s=0.2,
            )
        )
        self.journal = Journal()
        self.course = Course(self.journal, spec.training.global_batch_size)
        self.groups: dict[int, Group] = {}
        self.checkpoints: list[Checkpointed] = []
        self.reasons: list[str] = []
        """Why the run was in each of its phases."""
        self._faults = tuple(faults)
        self._silence_s = silence_s
        self._first_step_s = first_step_s
        self._groups_per_node = groups_per_node
        self._starts_quietly = starts_quietly
        self._finds_missing = finds_missing
        self._ends_stalls = ends_stalls
        self._heard_at = time.monotonic()
        self._plans: dict[int, GenerationPlan] = {}
        self._commits: dict[int, dict[int, StepCommit]] = {}
        self._launches: list[tuple[int, bool]] = []
        self._after_loss, self._lost_at = 0, 0.0
        self._allowed = spec.training.steps + 1
        self._others_listen = listeners_of([os.getpid()])
        self._listened: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.tell(elastic.StartRequested())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for group in self.groups.values():
            self._kill(group)
            for process in group.processes:
                process.join(10)
                assert not process.is_alive(), f"process {process.pid} is left over"
            group.world.close()
        open_ports = self._listened.keys() & listeners().keys()
        assert not open_ports, f"left open: {[self._listened[inode] for inode in open_ports]}"
        if error is None:
            # Whatever befell it: every sample of every committed step was used exactly once.
            samples, steps = self.course.samples, {step.step for step in self.steps}
            due = len(steps) * self.spec.training.global_batch_size
            assert (samples.due, samples.used, samples.repeated) == (due, due, 0)

    # What a test sees.

    @property
    def steps(self) -> list[StepRecord]:
        """The committed steps, in the order in which they were told."""
        return [event.record for event in self.journal._events if isinstance(event, StepEvent)]

    @property
    def members(self) -> list[int]:
        """The groups that train."""
        groups = self.machine.groups.values()
        return [g.group_id for g in groups if g.phase == elastic.GroupPhase.MEMBER]

    @property
    def waiting(self) -> list[int]:
        """The groups that are ready to join."""
        groups = self.machine.groups.values()
        return [g.group_id for g in groups if g.phase == elastic.GroupPhase.READY]

    # What a test does.

    def hold_at(self, step: int) -> None:
        """Let the members train up to `step` only, and wait there; it must be in the future."""
        self._allowed = step
        self._tell_workers(None)

    def go_on(self) -> None:
        """Let them train to the end."""
        self._allowed = self.spec.training.steps + 1
        self._tell_workers(None)

    def scale(self, wanted: int) -> None:
        """Ask for another number of groups."""
        self.tell(elastic.WantedChanged(wanted, "The test asks for it."))

    def kill(self, group_id: int, *ranks: int) -> None:
        """Kill workers of a group; all of them if none is named."""
        for rank in ranks or range(self.size):
            pid = self.groups[group_id].pids[rank]
            if self.groups[group_id].processes[rank].is_alive():
                os.kill(pid, signal.SIGKILL)

    def stop(self, group_id: int, *ranks: int) -> None:
        """Stop workers as SIGSTOP does: they keep their connections and say nothing."""
        for rank in ranks or range(self.size):
            os.kill(self.groups[group_id].pids[rank], signal.SIGSTOP)

    def wake(self, group_id: int, *ranks: int) -> None:
        """Let workers that were stopped go on."""
        for rank in ranks or range(self.size):
            os.kill(self.groups[group_id].pids[rank], signal.SIGCONT)

    def put_out_of_reach(self, group_id: int) -> None:
        """Have a group that is evicted live on: nobody can end its processes, or hear them."""
        self.groups[group_id].out_of_reach = True

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Serve the workers until something happened.

        Raises:
            AssertionError: It did not happen in time.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not happened():
            assert time.monotonic() < deadline, (
                f"{what} was missing: step {self.course.step}, {self.machine.phase}:"
                f" {self.machine.reason} {self.machine.groups}"
            )
            self._serve()

    def train_with(self, *groups: int) -> None:
        """Hold the members until some groups are there, then train until these are the members."""
        there = (elastic.GroupPhase.READY, elastic.GroupPhase.MEMBER)

        def are_there() -> bool:
            known = self.machine.groups
            return all(group in known and known[group].phase in there for group in groups)

        self.until(are_there, f"groups {groups}")
        wanted = sorted(groups)
        self.train_until(lambda: self.members == wanted, f"training with {wanted} alone")

    def train_until(self, happened: Callable[[], object], what: str) -> None:
        """Let the members train step by step until something happened, and hold them there."""
        while not happened():
            self.hold_at(max(self._allowed, self.course.step) + 1)
            assert self._allowed < self.spec.training.steps, f"{what} was missing: {self.members}"
            self.until(
                lambda: self.course.step >= self._allowed or happened(), f"step {self._allowed}"
            )

    def finish(self) -> None:
        """Let the run come to its end, and all processes to theirs, but for those out of reach."""
        self.go_on()
        self.until(lambda: self.machine.phase in FINAL, "the end of the run")
        within_reach = [group for group in self.groups.values() if not group.out_of_reach]
        processes = [process for group in within_reach for process in group.processes]
        self.until(lambda: not any(p.is_alive() for p in processes), "the end of all processes")

    def tell(self, event: elastic.Event) -> None:
        """Feed the machine, and carry out what it decides."""
        for decision in self.machine.handle(event, time.monotonic()):
            self._carry_out(decision)

    # The supervisor.

    def _serve(self) -> None:
        pipes = {pipe: number for number, g in self.groups.items() for pipe in g.pipes}
        for ready in wait(list(pipes), TICK_S) if pipes else []:
            assert isinstance(ready, Connection)
            self._hear(pipes[ready], ready)
        self.course.note_overdue()
        quiet_s = time.monotonic() - self._heard_at if self._ends_stalls else 0.0
        step_s = self.journal.foretold_step_s(len(self.machine.members))
        self.tell(elastic.Tick(step_s, quiet_s, self.course.step))
        # As the supervisor does, see [Note: starting after a loss] in `mics_core.cluster.groups`.
        have_regrouped = self.course.newest_trained >= self._after_loss or not self.members
        if have_regrouped or time.monotonic() > self._lost_at + REGROUPED_WITHIN_S:
            launches, self._launches = self._launches, []
            for group_id, begins_run in launches:
                self._launch(group_id, begins_run)
                self.tell(elastic.GroupPlaced(group_id))

    def _hear(self, group_id: int, pipe: Connection) -> None:
        group = self.groups[group_id]
        if pipe not in group.pipes:
            return  # it was stopped meanwhile
        try:
            message = pipe.recv()
        except (EOFError, OSError):
            rank = group.pipes.pop(pipe)
            if rank not in group.ended:
                self.tell(elastic.GroupLost(group_id, f"The process of rank {rank} is gone."))
            elif not group.pipes:
                self.tell(elastic.GroupEnded(group_id, group.ended[0]))
            return
        if group.stopped:
            group.last_words.append(message)  # it has no say any more
            return
        if group.entered or not isinstance(message, Missed):
            self._heard_at = time.monotonic()
        self._take_in(group_id, group, message)

    def _take_in(self, group_id: int, group: Group, message: Any) -> None:
        match message:
            case Ready(rank):
                group.ready[rank] = message
                if len(group.ready) == self.size:
                    self._note_listeners(listeners_of(group.pids))
                    self.tell(elastic.GroupReady(group_id))
            case Entered(0, generation, step, connect_s):
                group.entered, group.entered_at = generation, step
                self.course.enter(group_id, generation, step, connect_s)
                self.tell(elastic.GroupEntered(group_id, generation, step))
            case Committed(commit):
                self._check_agreement(group_id, commit)
                if commit.generation == group.entered and commit.step >= group.entered_at:
                    self.tell(elastic.GroupTrained(group_id, commit.generation))
                self.course.commit(message)
            case ReplicationBroke(0, generation, step, error, has_state):
                group.breaks.append(message)
                self.tell(elastic.GroupBroken(group_id, generation, step, error, has_state))
            case Missed(_, generation, groups) if self._finds_missing:
                self.tell(elastic.GroupsMissed(group_id, generation, groups))
            case Failed(rank, step, error, own_error):
                self.tell(elastic.GroupLost(group_id, f"Rank {rank}: {error}", own_error, step))
            case Checkpointed():
                self.checkpoints.append(message)
            case Digest(rank, digest):
                group.digests[rank] = digest
            case Ended(rank, finished):
                group.ended[rank] = finished

    def _check_agreement(self, group_id: int, commit: StepCommit) -> None:
        """Hold what a group has committed against what others say that they have.

        The members of one generation commit a step, with the same bits. It is committed again,
        under a later one, only where all that had done so are gone.
        """
        assert group_id in self._plans[commit.generation].groups, f"{group_id} is no member"
        others = self._commits.setdefault(commit.step, {})
        for other, theirs in others.items():
            if theirs.generation == commit.generation:
                assert theirs.fingerprint == commit.fingerprint, f"{group_id} and {other} differ"
                continue
            earlier = other if theirs.generation < commit.generation else group_id
            phase = self.machine.groups[earlier].phase
            assert phase in GONE, f"step {commit.step} again, and group {earlier} is {phase}"
        others[group_id] = commit

    def _carry_out(self, decision: elastic.Decision) -> None:
        match decision:
            case elastic.LaunchGroup(group_id, begins_run):
                self._launches.append((group_id, begins_run))
            case elastic.StopGroup(group_id):
                self._launches = [launch for launch in self._launches if launch[0] != group_id]
                if group_id in self.groups:
                    self._stop(self.groups[group_id])
            case elastic.AnnounceGeneration():
                self._announce(decision)
            case elastic.SetRunPhase(_, reason):
                self.reasons.append(reason)
            case _:
                pass

    def _announce(self, decision: elastic.AnnounceGeneration) -> None:
        number, groups = decision.number, decision.groups
        before = self._plans.get(number - 1)
        entered = max((group.entered for group in self.machine.groups.values()), default=0)
        after_loss = has_lost_member(self._plans, entered, lambda g: not self.groups[g].stopped)
        if after_loss:
            self._after_loss, self._lost_at = number, time.monotonic()
        port = self.groups[groups[0]].ready[0].store_port if groups else None
        store = StoreAddress("127.0.0.1", port) if port is not None else None
        plan = plan_of(decision, store, before, self.journal.foretold_step_s(len(groups)))
        self._plans[number] = plan
        self.course.announce(number, groups, decision.reason, after_loss=after_loss)
        self._tell_workers(plan)

    def _tell_workers(self, plan: GenerationPlan | None) -> None:
        for group_id, group in self.groups.items():
            was_member = any(group_id in known.groups for known in self._plans.values())
            mine = plan if was_member else None
            for pipe in group.pipes:
                with suppress(OSError):  # where it is gone its pipe tells so
                    pipe.send(News(mine, self._after_loss, self._allowed))

    def _note_listeners(self, found: dict[str, str]) -> None:
        """Keep in mind what must not listen any more at the end."""
        mine = found.keys() - self._others_listen.keys()
        self._listened |= {inode: found[inode] for inode in mine}

    def _launch(self, group_id: int, begins_run: bool) -> None:
        context, before = process_context(), listeners_of([os.getpid()])
        world = host_store("127.0.0.1")
        here = listeners_of([os.getpid()])
        self._note_listeners({inode: here[inode] for inode in here.keys() - before.keys()})
        group = self.groups[group_id] = Group(world, [], {})
        for rank in range(self.size):
            faults = tuple(f for f in self._faults if (f.group, f.rank) == (group_id, rank))
            mine, theirs = context.Pipe()
            settings = Settings(
                group_id=group_id,
                rank=rank,
                size=self.size,
                world_port=world.port,
                begins_run=begins_run,
                spec=self.spec,
                faults=faults,
                silence_s=self._silence_s,
                first_step_s=self._first_step_s,
                starts_quietly=self._starts_quietly,
                node=f"node-{group_id // self._groups_per_node}",
            )
            process = context.Process(target=serve, args=(settings, theirs), daemon=True)
            process.start()
            theirs.close()
            mine.send(News(None, self._after_loss, self._allowed))
            group.processes.append(process)
            group.pipes[mine] = rank

    def _stop(self, group: Group) -> None:
        group.stopped = True
        if not group.out_of_reach:
            self._kill(group)

    def _kill(self, group: Group) -> None:
        for process in group.processes:
            if process.is_alive():
                process.kill()
        for pipe in group.pipes:
            pipe.close()
        group.pipes.clear()
