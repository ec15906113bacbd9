"""The membership machine: events in, decisions with a reason out.

Pure: no clock, no randomness, no I/O. The supervisor feeds it events with the time at which they
happened and carries out what it decides, so every sequence of events can be replayed in a test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mics_core.elastic.events import (
    CancelRequested,
    Decision,
    Event,
    GroupBroken,
    GroupDraining,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    GroupsMissed,
    GroupStarted,
    GroupTrained,
    GroupUnplaced,
    PauseRequested,
    RunPhase,
    StartRequested,
    Tick,
    WantedChanged,
)
from mics_core.elastic.losses import lose
from mics_core.elastic.roster import ALIVE, GONE, JOINED, Group, Rules
from mics_core.elastic.run_state import STOPS, RunState
from mics_core.elastic.settling import settle
from mics_core.elastic.silence import stalled_after_s
from mics_core.elastic.starts import overdue_starts
from mics_core.elastic.wording import counted

__all__ = ["Group", "MembershipMachine", "Rules"]

_FINAL = (RunPhase.FINISHED, RunPhase.FAILED, *STOPS)


@dataclass(slots=True)
class MembershipMachine(RunState):
    """The membership of one run: its state, and what events mean for it."""

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Take in one event and return what follows from it, in order.

        Events about groups that are gone or unknown are ignored, so late and doubled messages do
        no harm; so is everything after the final phase.

        Args:
            event: What happened.
            now: When, in seconds of a clock that never goes back.
        """
        if self.phase in _FINAL:
            return []
        self.replacements.note_time(self.within(GroupPhase.MEMBER), now)
        match event:
            case StartRequested():
                self._start()
            case GroupPlaced(group_id):
                self._placed(group_id, now)
            case GroupUnplaced(group_id):
                self._unplaced(group_id)
            case GroupStarted(group_id):
                self._started(group_id, now)
            case GroupReady(group_id):
                self._ready(group_id, now)
            case GroupEntered(group_id, generation, step):
                self._entered(group_id, generation, step, now)
            case GroupTrained(group_id, generation):
                self._trained(group_id, generation)
            case GroupBroken():
                self._note_broken(event, now)
            case GroupsMissed():
                self._note_missed(event, now)
            case GroupLost():
                lose(self, event, now)
            case GroupDraining(group_id, reason):
                self._drain(group_id, reason)
            case GroupEnded(group_id, finished):
                self._ended(group_id, finished, now)
            case WantedChanged(wanted, reason, minimum):
                self._want(wanted, reason, minimum)
            case CancelRequested(reason):
                self.end(RunPhase.CANCELLED, reason)
            case PauseRequested(reason):
                self.end(RunPhase.PAUSED, reason)
            case Tick(usual_step_s, quiet_s, step):
                self.fault.committed(step)
                self.usual_step_s = usual_step_s
                self._evict_who_does_not_start(now)
                self._evict_the_silent(now, usual_step_s)
                self._end_a_stall(now, quiet_s, usual_step_s)
        settle(self, now)
        decisions, self.decisions = self.decisions, []
        return decisions

    def _start(self) -> None:
        if not self.why_wanted:
            self.why_wanted = f"The job wants {counted(self.wanted)}."
            self.set_phase(
                RunPhase.PENDING,
                f"Waiting for {counted(self.wanted)} to start; {self.rules.minimum} must be ready.",
            )

    def _want(self, wanted: int, reason: str, minimum: int | None) -> None:
        if minimum is not None:
            self.rules = replace(self.rules, minimum=minimum)
        assert wanted >= self.rules.minimum, (wanted, self.rules)
        if self.ending is None:
            self.wanted = wanted
            if self.why_wanted:
                self.why_wanted = reason

    def _placed(self, group_id: int, now: float) -> None:
        reason = "Nodes were found for it."
        if self.move(group_id, GroupPhase.STARTING, reason, GroupPhase.PLACING):
            self.groups[group_id].starting_since = now

    def _unplaced(self, group_id: int) -> None:
        group = self.living(group_id)
        if group is not None and not group.has_started:
            reason = "The supervisor was replaced before its run began: it waits for nodes again."
            self.move(group_id, GroupPhase.PLACING, reason, GroupPhase.STARTING)

    def _started(self, group_id: int, now: float) -> None:
        group = self.living(group_id)
        if group is not None and not group.has_started:
            group.has_started, group.starting_since = True, now

    def _ready(self, group_id: int, now: float) -> None:
        if self.move(
            group_id,
            GroupPhase.READY,
            "Its workers have built their shards.",
            GroupPhase.PLACING,
            GroupPhase.STARTING,
        ):
            self.groups[group_id].ready_at = now

    def _entered(self, group_id: int, generation: int, step: int, now: float) -> None:
        group = self.living(group_id)
        if group is None or not 0 < group.joined <= generation <= self.generation:
            return
        if group.entered >= generation:
            return
        group.entered, group.holds_state = generation, True
        if generation == self.generation:
            self._all_have_met()
        self.has_trained = True
        self.fault.committed(step)
        if self.move(
            group_id,
            GroupPhase.MEMBER,
            f"It trains since step {step} (generation {generation}).",
            GroupPhase.READY,
        ):
            # Only a newcomer's success says that groups can start; survivors enter each generation.
            self.replacements.starts.succeed()
            group.member_since = now
        if generation == self.generation and self.ending is None:
            self.training_with = f"Training with {counted(len(self.members))}."
            self.set_phase(RunPhase.RUNNING, self.training(now))

    def _all_have_met(self) -> None:
        """Nobody enters a generation before all its members are there."""
        self.rebuilding.have_met()
        for group in map(self.groups.__getitem__, self.members):
            group.met = self.generation
            self.silence.heard(group.group_id)

    def _trained(self, group_id: int, generation: int) -> None:
        group = self.living(group_id)
        if group is not None and group.trained < generation <= group.entered:
            group.trained = generation

    def _note_broken(self, event: GroupBroken, now: float) -> None:
        group = self.living(event.group_id)
        if group is None or not 0 < group.joined <= event.generation <= self.generation:
            return
        if event.generation >= max(group.broke, group.entered + 1):
            # A newcomer's copy may be whole though it never had a step of its own.
            if event.holds_state and not group.holds_state:
                group.copied = self.has_trained
            group.holds_state = event.holds_state
        group.broke = max(group.broke, event.generation)
        self.silence.heard(event.group_id)
        self.silence.broke(event.generation, now)
        if event.generation == self.generation and event.group_id in self.members:
            self.rebuilding.note(event)

    def _note_missed(self, event: GroupsMissed, now: float) -> None:
        by = self.living(event.group_id)
        if by is None or event.generation != self.generation or by.group_id not in self.members:
            return
        missing = [
            group
            for group in map(self.living, event.missing)
            if group is not None
            and group.group_id in self.members
            # Who has entered it came meanwhile.
            and group.entered < self.generation
        ]
        for lost in self.silence.missed(
            missing,
            by,
            self.members,
            self.generation,
            self.rules,
            now,
            usual_step_s=self.usual_step_s,
            has_newcomer=self._has_newcomer(self.generation - 1),
        ):
            lose(self, lost, now)

    def _evict_who_does_not_start(self, now: float) -> None:
        for lost in overdue_starts(self.groups.values(), self.rules, now):
            lose(self, lost, now)

    def _evict_the_silent(self, now: float, usual_step_s: float) -> None:
        for lost in self.silence.silent(
            self.groups.values(),
            self.generation,
            self.rules,
            now,
            usual_step_s=usual_step_s,
            has_newcomer=self._has_newcomer,
            is_ending=self.ending is not None,
        ):
            lose(self, lost, now)

    def _has_newcomer(self, generation: int) -> bool:
        """Whether a group that lives came by then and has yet to compute its first step."""
        return any(
            0 < group.joined <= generation and not group.trained
            for group in self.groups.values()
            if group.phase not in GONE
        )

    def _end_a_stall(self, now: float, quiet_s: float, usual_step_s: float) -> None:
        """Evict all members of a run of which nothing is heard.

        Nothing tells a first step of all of them that hangs from one in which they compile, so it
        may take as long as a start. One that has done a step would tell of others who take too long
        for their first. And a generation is entered soon, or somebody tells who is missing.
        """
        members = self.newest_groups
        is_at_work = self.phase == RunPhase.RUNNING
        is_at_the_door = bool(members) and all(
            group.phase in JOINED and group.entered < self.generation for group in members
        )
        limit_s = stalled_after_s(self.rules, usual_step_s)
        reason = f"No group has said anything for {quiet_s:.0f} s."
        if is_at_work and self.ending is None and not any(group.trained for group in members):
            limit_s = max(limit_s, self.rules.start_s)
            reason += " They were at their first step; groups.start_s says how long it may take."
        may_be_quiet = not (is_at_work or is_at_the_door or self.ending is not None)
        if may_be_quiet or quiet_s < limit_s:
            return
        leaving = [group.group_id for group in self.within(GroupPhase.LEAVING)]
        for group_id in (*self.members, *leaving):
            lose(self, GroupLost(group_id, reason), now)

    def _ended(self, group_id: int, finished: bool, now: float) -> None:
        group = self.living(group_id)
        if group is None:
            return
        if finished:
            self.move(group_id, GroupPhase.LEFT, "All steps are done.")
            if self.ending is not None and self.ending.phase == RunPhase.PAUSED:
                self.ending = None  # the pause came too late: nothing is left to go on with
            self.end(RunPhase.FINISHED, "All steps are done.")
        elif group.phase == GroupPhase.LEAVING or self.ending is not None:
            self.move(group_id, GroupPhase.LEFT, group.reason)
        else:
            lose(self, GroupLost(group_id, "It ended without being asked to."), now)

    def _drain(self, group_id: int, reason: str) -> None:
        group = self.living(group_id)
        if group is None or group.phase not in ALIVE or group.draining or self.ending is not None:
            return
        group.draining = reason
        self.replacements.vacate(group, reason)
