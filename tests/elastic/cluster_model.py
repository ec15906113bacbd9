"""A model of a cluster in pure Python: a membership machine and the groups that it decides on.

It carries out what the machine decides, moves groups on, stops and loses them, tells them of a
generation late, and delivers their messages late, doubled and in any order between groups, loses
what a group that dies has not told, and kills the supervisor in the middle of a decision. After
each event it checks what must always hold.
"""

from __future__ import annotations

import pickle

from mics_core.elastic.events import (
    AnnounceGeneration,
    CancelRequested,
    Decision,
    Event,
    GroupDraining,
    GroupEnded,
    GroupLost,
    GroupsMissed,
    GroupUnplaced,
    LaunchGroup,
    PauseRequested,
    RunPhase,
    StartRequested,
    StopGroup,
    Tick,
    WantedChanged,
)
from mics_core.elastic.machine import MembershipMachine
from mics_core.elastic.roster import ALIVE, Rules
from tests.elastic.invariants import Life, SimGroup
from tests.elastic.simulated_groups import SimulatedGroups

SILENT = ("has not answered", "does not come", "said anything")
FINAL = (RunPhase.FINISHED, RunPhase.CANCELLED, RunPhase.PAUSED, RunPhase.FAILED)


class ClusterModel(SimulatedGroups):
    """A simulated cluster that drives a machine.

    Args:
        wanted: Groups wanted at the start.
        minimum: Fewest groups that train.
        steps: Steps of the run; none for a run that does not end by itself.
    """

    def __init__(self, wanted: int, minimum: int, steps: int | None):
        super().__init__(steps)
        self.machine = MembershipMachine(
            Rules(minimum, wanted, max_failed_starts=4, silence_s=10.0, first_step_s=20.0)
        )
        self.minimum = minimum
        self.now = 0.0
        self.is_ending = False
        self._stopped: set[int] = set()
        self._told_gone: set[int] = set()
        self._delivered: list[Event] = []
        self._heard_at = self.now
        self.tell(StartRequested())

    # The machine's side.

    def tell(self, event: Event) -> None:
        """Deliver an event, carry out the decisions and check them."""
        self._carry_out_all(self._decide(event))

    def _decide(self, event: Event) -> list[Decision]:
        if isinstance(event, GroupLost | GroupEnded):
            self._told_gone.add(event.group_id)
        ends = isinstance(event, CancelRequested | PauseRequested) or (
            isinstance(event, GroupEnded) and event.finished
        )
        was_final = self.machine.phase in FINAL
        decisions = self.machine.handle(event, self.now)
        assert not (was_final and decisions), decisions
        # A late end of an evicted group ends nothing.
        self.is_ending = self.is_ending or (ends and self.machine.ending is not None)
        return decisions

    def _carry_out_all(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._carry_out(decision)
        alive = [group for group in self.machine.groups.values() if group.phase in ALIVE]
        # Members leave only when others are sure to hold the states.
        is_surplus = sum(not group.draining for group in alive) > self.machine.wanted
        assert not is_surplus or all(group.joined for group in alive)
        if self.machine.phase in FINAL:
            assert not alive
            assert all(
                g.life == Life.GONE
                for g in self.groups.values()
                if g.group_id not in self._told_gone
            )

    def _carry_out(self, decision: Decision) -> None:
        assert decision.reason.strip() == decision.reason != "", decision
        match decision:
            case LaunchGroup(group_id, begins_run):
                assert not self.is_ending
                assert group_id not in self.groups
                self.groups[group_id] = SimGroup(group_id, has_state=begins_run)
            case StopGroup(group_id, reason):
                assert group_id not in self._stopped
                is_silent = any(words in reason for words in SILENT)
                self.num_failed_starts += is_silent
                if not is_silent and self.machine.ending is None:
                    self.invariants.check_stop(self.groups[group_id])
                self._stopped.add(group_id)
                self.groups[group_id].life = Life.GONE
            case AnnounceGeneration(number, members):
                self._heard_at = self.now  # its members have all their time
                assert number == len(self.plans)
                assert len(set(members)) == len(members)
                assert not set(members) & (self._stopped | self._told_gone)
                assert not members or len(members) >= self.minimum
                assert not members or any(self._may_hold(self.groups[m]) for m in members)
                self.invariants.check_leaves(members)
                survivors = [m for m in self.plans[-1] if m in members]
                assert [m for m in members if m in self.plans[-1]] == survivors
                self.announce(members)

    def _may_hold(self, group: SimGroup) -> bool:
        return group.has_state or group.group_id in self.announced

    # Requests, messages and time.

    def drain(self, group_id: int) -> None:
        """Tell that a node of a group is to be taken away; it is told again and again."""
        if group_id not in self._stopped | self._told_gone:
            self.tell(GroupDraining(group_id, "Its node is being drained."))

    def deliver(self, group_id: int) -> bool:
        """Deliver the oldest message of a group; a group's own messages keep their order."""
        outbox = self.groups[group_id].outbox
        if not outbox:
            return False
        event = outbox.pop(0)
        self._delivered.append(event)
        if not isinstance(event, GroupsMissed):
            self._heard_at = self.now
        self.tell(event)
        return True

    def restart_supervisor(self, number: int) -> None:
        """Kill the supervisor: another remembers its machine, and hears the last messages again."""
        self.machine = pickle.loads(pickle.dumps(self.machine))
        for event in self._delivered[len(self._delivered) - number % 5 :]:
            self.tell(event)
        for group in list(self.groups.values()):
            if group.life == Life.STARTING and (group.group_id + number) % 2:
                group.life = Life.PLACING  # its run had not begun
                self.tell(GroupUnplaced(group.group_id))

    def crash_before_storing(self, group_id: int, number: int) -> None:
        """Kill the supervisor when it has decided and nothing is stored: all that is forgotten.

        Nobody has been told of a generation then, but processes may have been ended. The report
        was not answered, and is sent again.
        """
        forgotten: MembershipMachine = pickle.loads(pickle.dumps(self.machine))
        for decision in forgotten.handle(self._next_event(group_id), self.now):
            if isinstance(decision, StopGroup) and number % 2 and not self.is_ending:
                self.lose(decision.group_id, own_error=False)

    def crash_after_storing(self, group_id: int, number: int) -> None:
        """Kill the supervisor when it has stored what it decided: the next one carries it out.

        The groups go on meanwhile, and the report is sent again.
        """
        decisions = self._decide(self._next_event(group_id))
        self.machine = pickle.loads(pickle.dumps(self.machine))
        for going_on in list(self.groups)[: number % 4]:
            self.advance(going_on)
        self._carry_out_all(decisions)

    def _next_event(self, group_id: int) -> Event:
        outbox = self.groups[group_id].outbox
        return outbox[0] if outbox else Tick(step=self.invariants.committed)

    def deliver_again(self, index: int) -> None:
        """Deliver a message a second time."""
        if self._delivered:
            self.tell(self._delivered[index % len(self._delivered)])

    def pass_time(self, seconds: float) -> None:
        """Move the clock; who waits at the door of a generation tells who has not come."""
        self.now += seconds
        for group in self.groups.values():
            missing = self._missing_at_the_door(group)
            if missing and not any(isinstance(event, GroupsMissed) for event in group.outbox):
                group.outbox.append(GroupsMissed(group.group_id, group.generation, missing))
        if self.invariants.can_commit_somewhere():
            self._heard_at = self.now
        quiet_s = self.now - self._heard_at
        self.tell(Tick(quiet_s=quiet_s, step=self.invariants.committed))

    def _missing_at_the_door(self, group: SimGroup) -> tuple[int, ...]:
        if group.life != Life.CONNECTING:
            return ()
        number = group.generation
        return tuple(
            member
            for member in self.plans[number]
            if not self._is_in(self.groups[member], Life.CONNECTING, number)
        )

    def scale(self, wanted: int, minimum: int | None = None) -> None:
        """Ask for another number of groups, perhaps with another lower bound."""
        if minimum is not None and self.machine.phase not in FINAL:
            self.minimum = minimum
        wanted = max(wanted, self.minimum)
        self.tell(WantedChanged(wanted, "The user asked for it.", minimum))

    def cancel(self) -> None:
        """Ask for the end."""
        self.tell(CancelRequested("The user cancelled it."))

    def pause(self) -> None:
        """Ask for an end after which the run can go on."""
        self.tell(PauseRequested("The user paused it."))

    def begin(self) -> None:
        """Let the groups come as far as the first steps, with nothing in their way."""
        while self.machine.phase == RunPhase.PENDING:
            for group_id in list(self.groups):
                self.deliver(group_id)
                self.advance(group_id)

    def recover(self) -> None:
        """Let the cluster be healthy until nothing moves any more; who hangs goes on hanging.

        But not in the very first step, which takes as long as it takes.

        Raises:
            AssertionError: It still moves after more rounds than any schedule should need.
        """
        for group_id, group in list(self.groups.items()):
            self.hear_again(group_id)
            members = self.plans[group.generation]
            if group.life == Life.HUNG and not any(self.groups[m].trained for m in members):
                self.lose(group_id, own_error=False)
        quiet = 0
        for _ in range(400):
            moved = False
            for group_id in list(self.groups):
                moved |= self.deliver(group_id)
                moved |= self.advance(group_id)
            self.pass_time(5)
            quiet = 0 if moved else quiet + 1
            if quiet > 15:  # longer than the longest pause and the grace of the start
                return
        raise AssertionError(f"still moving: {self.machine}")
