"""The membership machine: events in, decisions with a reason out.

Pure: no clock, no randomness, no I/O. The supervisor feeds it events with the time at which they
happened and carries out what it decides, so every sequence of events can be replayed in a test.

[Note: who holds the state]
Until a group has entered a generation, every group is launched to begin the run, and any of them
will do. From then on new groups are launched to copy, and so must those that were launched before
and come late. A group holds the trained state once it has entered a generation, or says when one
broke that its copy was whole, until it reports that a copy broke under it. A joiner that was
announced may have copied already, and is believed to until it says that the generation broke under
it. When all who may hold the state are gone, the machine calls back a leaving group that does;
without one the groups that waited to copy are useless and the run begins again, unless the last
holder failed by its own error, which would only repeat itself. Before that an error may end the run
that one step brings about in group after group, see [Note: what is evidence].

[Note: the end of the run]
Every ending is told to the groups first and declared when the last of them is gone. The members
learn of it from an empty generation. A run that finishes needs none as a rule, for all members
commit the last step together. If that step broke under one of them, after others committed it and
ended, its peers are gone for good: it is told to leave.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mics_core.elastic.back_off import BackOff
from mics_core.elastic.events import (
    AnnounceGeneration,
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
    LaunchGroup,
    MarkGroup,
    PauseRequested,
    RunPhase,
    SetRunPhase,
    StartRequested,
    StopGroup,
    Tick,
    WantedChanged,
)
from mics_core.elastic.repeated_fault import RepeatedFault
from mics_core.elastic.replacements import Replacements, Vacancy
from mics_core.elastic.roster import ALIVE, GONE, JOINED, Group, Rules
from mics_core.elastic.silence import Silence, stalled_after_s
from mics_core.elastic.starts import overdue_starts
from mics_core.elastic.wording import counted, named, why_groups_come, why_members_go

__all__ = ["Group", "MembershipMachine", "Rules"]

_STOPS = (RunPhase.CANCELLED, RunPhase.PAUSED)
_FINAL = (RunPhase.FINISHED, RunPhase.FAILED, *_STOPS)
_NEWS_COMES_WITHIN_S = 2.0


@dataclass(slots=True)
class MembershipMachine:
    """The membership of one run.

    Args:
        rules: The policy; `minimum` may change later, and so does what is wanted, see `wanted`.
    """

    rules: Rules
    wanted: int = field(init=False)
    phase: RunPhase = RunPhase.PENDING
    reason: str = "The run has not begun."
    groups: dict[int, Group] = field(default_factory=dict)
    generation: int = 0
    members: tuple[int, ...] = ()
    _why_wanted: str = ""
    _training_with: str = ""
    _replacements: Replacements = field(init=False)
    _fault: RepeatedFault = field(default_factory=RepeatedFault)
    _has_trained: bool = False
    _last_own_error: str = ""
    _silence: Silence = field(default_factory=Silence)
    _usual_step_s: float = 0.0
    _broken: dict[int, GroupBroken] = field(default_factory=dict)
    _rebuilds: BackOff = field(init=False)
    _rebuilt_step: int = -1
    _rebuilt_in_vain: int = 0
    """Times in a row that the same members were to meet again and nobody entered."""
    _ending: SetRunPhase | None = None
    _decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = self.rules.wanted
        self._replacements = Replacements(self.rules)
        self._rebuilds = BackOff(self.rules.back_off_s, self.rules.max_back_off_s)

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
        self._replacements.note_time(self._in(GroupPhase.MEMBER), now)
        match event:
            case StartRequested():
                self._start()
            case GroupPlaced(group_id):
                self._placed(group_id, now)
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
                self._lost(event, now)
            case GroupDraining(group_id, reason):
                self._drain(group_id, reason)
            case GroupEnded(group_id, finished):
                self._ended(group_id, finished, now)
            case WantedChanged(wanted, reason, minimum):
                self._want(wanted, reason, minimum)
            case CancelRequested(reason):
                self._end(RunPhase.CANCELLED, reason)
            case PauseRequested(reason):
                self._end(RunPhase.PAUSED, reason)
            case Tick(usual_step_s, quiet_s, step):
                self._fault.committed(step)
                self._usual_step_s = usual_step_s
                self._evict_who_does_not_start(now)
                self._evict_the_silent(now, usual_step_s)
                self._end_a_stall(now, quiet_s, usual_step_s)
        self._settle(now)
        decisions, self._decisions = self._decisions, []
        return decisions

    # What the events mean.

    def _start(self) -> None:
        if not self._why_wanted:
            self._why_wanted = f"The job wants {counted(self.wanted)}."
            self._set_phase(
                RunPhase.PENDING,
                f"Waiting for {counted(self.wanted)} to start; {self.rules.minimum} must be ready.",
            )

    def _want(self, wanted: int, reason: str, minimum: int | None) -> None:
        if minimum is not None:
            self.rules = replace(self.rules, minimum=minimum)
        assert wanted >= self.rules.minimum, (wanted, self.rules)
        if self._ending is None:
            self.wanted = wanted
            if self._why_wanted:
                self._why_wanted = reason

    def _placed(self, group_id: int, now: float) -> None:
        reason = "Nodes were found for it."
        if self._move(group_id, GroupPhase.STARTING, reason, GroupPhase.PLACING):
            self.groups[group_id].starting_since = now

    def _started(self, group_id: int, now: float) -> None:
        group = self._living(group_id)
        if group is not None and not group.has_started:
            group.has_started, group.starting_since = True, now

    def _ready(self, group_id: int, now: float) -> None:
        if self._move(
            group_id,
            GroupPhase.READY,
            "Its workers have built their shards.",
            GroupPhase.PLACING,
            GroupPhase.STARTING,
        ):
            self.groups[group_id].ready_at = now

    def _entered(self, group_id: int, generation: int, step: int, now: float) -> None:
        group = self._living(group_id)
        if group is None or not 0 < group.joined <= generation <= self.generation:
            return
        if group.entered >= generation:
            return
        group.entered, group.holds_state = generation, True
        if generation == self.generation:
            self._all_have_met()
        self._has_trained = True
        self._fault.committed(step)
        if self._move(
            group_id,
            GroupPhase.MEMBER,
            f"It trains since step {step} (generation {generation}).",
            GroupPhase.READY,
        ):
            # Only a newcomer's success says that groups can start; survivors enter each generation.
            self._replacements.starts.succeed()
            group.member_since = now
        if generation == self.generation and self._ending is None:
            self._training_with = f"Training with {counted(len(self.members))}."
            self._set_phase(RunPhase.RUNNING, self._training(now))

    def _all_have_met(self) -> None:
        """Nobody enters a generation before all its members are there."""
        self._rebuilt_in_vain = 0
        for group in map(self.groups.__getitem__, self.members):
            group.met = self.generation
            self._silence.heard(group.group_id)

    def _trained(self, group_id: int, generation: int) -> None:
        group = self._living(group_id)
        if group is not None and group.trained < generation <= group.entered:
            group.trained = generation

    def _note_broken(self, event: GroupBroken, now: float) -> None:
        group = self._living(event.group_id)
        if group is None or not 0 < group.joined <= event.generation <= self.generation:
            return
        if event.generation >= max(group.broke, group.entered + 1):
            # A newcomer's copy may be whole though it never had a step of its own.
            if event.holds_state and not group.holds_state:
                group.copied = self._has_trained
            group.holds_state = event.holds_state
        group.broke = max(group.broke, event.generation)
        self._silence.heard(event.group_id)
        self._silence.broke(event.generation, now)
        if event.generation == self.generation and event.group_id in self.members:
            self._broken.setdefault(event.group_id, event)

    def _note_missed(self, event: GroupsMissed, now: float) -> None:
        by = self._living(event.group_id)
        if by is None or event.generation != self.generation or by.group_id not in self.members:
            return
        missing = [
            group
            for group in map(self._living, event.missing)
            if group is not None
            and group.group_id in self.members
            # Who has entered it came meanwhile.
            and group.entered < self.generation
        ]
        for lost in self._silence.missed(
            missing,
            by,
            self.members,
            self.generation,
            self.rules,
            now,
            usual_step_s=self._usual_step_s,
        ):
            self._lost(lost, now)

    def _evict_who_does_not_start(self, now: float) -> None:
        for lost in overdue_starts(self.groups.values(), self.rules, now):
            self._lost(lost, now)

    def _evict_the_silent(self, now: float, usual_step_s: float) -> None:
        for lost in self._silence.silent(
            self.groups.values(),
            self.generation,
            self.rules,
            now,
            usual_step_s=usual_step_s,
            is_ending=self._ending is not None,
        ):
            self._lost(lost, now)

    def _end_a_stall(self, now: float, quiet_s: float, usual_step_s: float) -> None:
        """Evict all members of a run of which nothing is heard.

        As long as none has done a step they may take as long as they like, unless the run is to
        end. One that has would tell of others who take too long for their first. And a generation
        is entered soon, or somebody tells who is missing.
        """
        members = [self.groups[member] for member in self.members]
        is_at_work = self.phase == RunPhase.RUNNING and any(g.trained for g in members)
        is_at_the_door = bool(members) and all(
            group.phase in JOINED and group.entered < self.generation for group in members
        )
        limit_s = stalled_after_s(self.rules, usual_step_s)
        may_be_quiet = not (is_at_work or is_at_the_door or self._ending is not None)
        if may_be_quiet or quiet_s < limit_s:
            return
        reason = f"No group has said anything for {quiet_s:.0f} s."
        leaving = [group.group_id for group in self._in(GroupPhase.LEAVING)]
        for group_id in (*self.members, *leaving):
            self._lost(GroupLost(group_id, reason), now)

    def _lost(self, event: GroupLost, now: float) -> None:
        group = self._living(event.group_id)
        if group is None:
            return
        before, reason = group.phase, event.reason
        # Whatever is left of it must not go on: its processes are ended even if they seem gone.
        self._remove(group, GroupPhase.LOST, reason)
        if self._ending is not None or before == GroupPhase.LEAVING:
            return
        self._replacements.vacate(group, reason)
        if before != GroupPhase.MEMBER:
            self._note_failed_start(group, reason, event.own_error, now)
            return
        self._last_own_error = reason if event.own_error else ""
        self._replacements.note_loss(group, reason, event.own_error, now)
        if event.own_error and event.step is not None:
            why = self._fault.note(group, event.step, reason, len(self.members))
            if why:
                self._end(RunPhase.FAILED, why)

    def _note_failed_start(self, group: Group, reason: str, own_error: bool, now: float) -> None:
        starts = self._replacements.starts
        starts.fail(group.attempt, reason, own_error, now)
        if self._in(GroupPhase.MEMBER):
            return
        failed, most = starts.failed, self.rules.max_failed_starts
        error = f"The first error: {starts.first_error}"
        if failed < most:
            self._set_phase(
                self.phase,
                f"Attempt {failed} of {most} to start failed; the next begins after"
                f" {starts.pause_s:g} s. {error}",
            )
        elif not self._in(GroupPhase.STARTING):
            times = f", {failed} times in a row" if failed > 1 else ""
            self._end(RunPhase.FAILED, f"Groups could not start{times}. {error}")

    def _ended(self, group_id: int, finished: bool, now: float) -> None:
        group = self._living(group_id)
        if group is None:
            return
        if finished:
            self._move(group_id, GroupPhase.LEFT, "All steps are done.")
            if self._ending is not None and self._ending.phase == RunPhase.PAUSED:
                self._ending = None  # the pause came too late: nothing is left to go on with
            self._end(RunPhase.FINISHED, "All steps are done.")
        elif group.phase == GroupPhase.LEAVING or self._ending is not None:
            self._move(group_id, GroupPhase.LEFT, group.reason)
        else:
            self._lost(GroupLost(group_id, "It ended without being asked to."), now)

    def _drain(self, group_id: int, reason: str) -> None:
        group = self._living(group_id)
        if group is None or group.phase not in ALIVE or group.draining or self._ending is not None:
            return
        group.draining = reason
        self._replacements.vacate(group, reason)

    # What follows from the state that the event left.

    def _settle(self, now: float) -> None:
        if self._ending is None:
            self._keep_the_state()
        if self._ending is None and self._why_wanted:
            self._match_wanted(now)
            self._let_the_draining_go()
            self._form_generation(now)
            if self.phase == RunPhase.RUNNING:
                self._set_phase(RunPhase.RUNNING, self._training(now))
        if self._ending is not None:
            self._wind_down(self._ending)

    def _training(self, now: float) -> str:
        return f"{self._training_with} {self._replacements.pause(now)}".rstrip()

    def _keep_the_state(self) -> None:
        """See [Note: who holds the state]."""
        if not self._has_trained or any(self._may_hold(group) for group in self._in(*JOINED)):
            return
        leaving = [g for g in self._in(GroupPhase.LEAVING) if g.holds_states_of_the_run]
        if leaving:
            self._move(
                leaving[0].group_id,
                GroupPhase.MEMBER,
                "It is called back: no other group holds the model states.",
            )
        elif self._last_own_error:
            self._end(
                RunPhase.FAILED,
                f"No group is left, and the last one failed: {self._last_own_error}",
            )
        else:
            self._begin_again()

    def _may_hold(self, group: Group) -> bool:
        is_unheard = group.group_id in self.members and group.broke < self.generation
        return is_unheard or group.holds_states_of_the_run

    def _begin_again(self) -> None:
        reason = "Every group that held the model states is lost, so the run begins again."
        for group in self._in(*ALIVE):
            # A group that has built its states did so before the newest checkpoint, maybe.
            if not group.holds_state or group.phase != GroupPhase.PLACING:
                self._remove(group, GroupPhase.LEFT, reason)
                self._replacements.vacancies.append(Vacancy(reason))
            group.joined = 0
        self.members, self._has_trained, self._rebuilt_step = (), False, -1
        self._broken.clear()
        self._set_phase(RunPhase.WAITING, reason)

    def _match_wanted(self, now: float) -> None:
        alive = [group for group in self._in(*ALIVE) if not group.draining]
        surplus = self._surplus(alive, len(alive) - self.wanted)
        stay = [group for group in self._up_to_date() if group not in surplus]
        for group in surplus:
            verb = "is" if self.wanted == 1 else "are"
            reason = f"{counted(self.wanted)} {verb} wanted: {self._why_wanted}"
            if not group.joined:
                self._remove(group, GroupPhase.LEFT, reason)
            elif stay or not self._has_trained:
                self._move(group.group_id, GroupPhase.LEAVING, reason)
        missing = max(0, self.wanted - len(alive))
        for vacancy in self._replacements.due(missing, self._why_wanted, now):
            self._launch(vacancy)

    def _let_the_draining_go(self) -> None:
        """Let groups on draining nodes leave, as soon as the others can train on without them.

        Their nodes' time may run out before; then they are lost, as without a notice.
        """
        stay = [group for group in self._up_to_date() if not group.draining]
        for group in self._in(*ALIVE):
            if group.draining and not group.joined:
                self._remove(group, GroupPhase.LEFT, group.draining)
            elif group.draining and len(stay) >= self.rules.minimum:
                self._move(group.group_id, GroupPhase.LEAVING, group.draining)

    def _up_to_date(self) -> list[Group]:
        """Return the members that hold the newest states for sure; one must stay when others leave.

        After a loss a member may be a step behind the others, and has entered the next generation
        only when it has caught up. Where no member can train any more, each has said what it has.
        """
        if any(self.groups[member].phase in GONE for member in self.members):
            return []
        members = self._in(GroupPhase.MEMBER)
        if not self._broken:
            return [g for g in members if g.holds_state and g.entered == self.generation]
        if len(self._broken) < len(self.members):
            return []
        told = {group_id: event for group_id, event in self._broken.items() if event.holds_state}
        newest = max((event.step for event in told.values()), default=0)
        return [g for g in members if g.group_id in told and told[g.group_id].step == newest]

    @staticmethod
    def _surplus(alive: list[Group], number: int) -> list[Group]:
        """Choose who goes: first those that do not train yet, then the youngest."""
        if number <= 0:
            return []
        order = sorted(alive, key=lambda group: (ALIVE.index(group.phase), -group.group_id))
        return order[:number]

    def _launch(self, vacancy: Vacancy) -> None:
        group_id, reason = len(self.groups), vacancy.reason
        begins_run = not self._has_trained
        self.groups[group_id] = Group(
            group_id,
            GroupPhase.PLACING,
            reason,
            begins_run,
            attempt=self._replacements.starts.failed,
            lineage=group_id if vacancy.lineage is None else vacancy.lineage,
            early_losses=self._replacements.early_losses.failed,
        )
        self._decisions.append(LaunchGroup(group_id, begins_run, reason))
        self._decisions.append(MarkGroup(group_id, GroupPhase.PLACING, reason))

    def _form_generation(self, now: float) -> None:
        # Survivors keep their order, so that their micro-batches move as little as can be.
        staying = [member for member in self.members if self.groups[member].phase in JOINED]
        known = set(staying)
        new = [group for group in self._in(*JOINED) if group.group_id not in known]
        wished = (*staying, *(group.group_id for group in new))
        why_gone = why_members_go([self.groups[member] for member in self.members])
        if not staying and not self._has_trained:
            self.members = ()  # whoever was to begin is gone: it is a start as the first was
        if not self.members:
            if self._start_is_due(new, now):
                again = " again" if self.generation else ""
                self._announce(wished, f"Training begins{again} with {named(wished)}.")
        elif wished == self.members:
            self._rebuild_if_broken(now)
        elif len(wished) < self.rules.minimum:
            verbs = ("is", "is") if len(wished) == 1 else ("are", "are")
            self._set_phase(
                RunPhase.WAITING,
                f"{counted(len(wished))} {verbs[0]} ready, {self.rules.minimum} needed."
                + "".join(f" {part}" for part in (why_gone, self._replacements.pause(now)) if part),
            )
        elif not self._must_wait(len(staying), new, now):
            self._announce(wished, f"{why_gone} {why_groups_come(new)}".strip())

    def _must_wait(self, num_staying: int, new: list[Group], now: float) -> bool:
        """Whether newcomers wait, which they do only while the members train without them.

        A change of members would begin the copies of others anew. And groups that come at the same
        moment are to join together: the first waits a little for those that start.
        """
        if num_staying < len(self.members) or self._broken:
            return False
        if any(self.groups[member].entered < self.generation for member in self.members):
            return True
        waited_s = now - min(group.ready_at for group in new)
        return bool(self._in(GroupPhase.STARTING)) and waited_s < self.rules.join_grace_s

    def _start_is_due(self, ready: list[Group], now: float) -> bool:
        """Whether to begin with the groups that are there, or to wait for those that start.

        Groups without a node are not waited for: nobody knows when there will be one.
        """
        if len(ready) < self.rules.minimum:
            return False
        if len(ready) >= self.wanted or not self._in(GroupPhase.STARTING):
            return True
        return now - min(group.ready_at for group in ready) >= self.rules.start_grace_s

    def _rebuild_if_broken(self, now: float) -> None:
        """Announce the same members again once their generation is broken for all of them.

        At once when a step breaks for the first time; with growing pauses when the groups cannot
        get past it. But newcomers that cannot get in are given up: the others can do without them.
        """
        if not self._is_broken_for_all(now):
            return
        first = next(self._broken[member] for member in self.members if member in self._broken)
        step = max(event.step for event in self._broken.values())
        what = f"Step {first.step} broke under group {first.group_id}: {first.error}"
        shut_out = self._newcomers_shut_out()
        if shut_out:
            for group_id in shut_out:
                self._lost(GroupLost(group_id, f"It cannot join the others. {what}"), now)
            self._form_generation(now)
            return
        if step > self._rebuilt_step:
            self._rebuilds.succeed()
        elif now < self._rebuilds.not_before:
            times = "once" if self._rebuilds.failed == 1 else f"{self._rebuilds.failed} times"
            self._set_phase(
                RunPhase.WAITING,
                "All groups are alive, but reconnecting them has not helped"
                f" {times}; they try again after {self._rebuilds.pause_s:g} s. {what}",
            )
            return
        self._rebuilt_step = step
        self._rebuilt_in_vain += 1
        self._rebuilds.fail(self._rebuilds.failed, first.error, own_error=False, now=now)
        self._announce(self.members, f"All groups are alive, but their connections broke. {what}")

    def _newcomers_shut_out(self) -> list[int]:
        """Return newcomers that could not get in twice in a row, where others can do without."""
        members = [self.groups[member] for member in self.members]
        if not self._rebuilt_in_vain or not any(g.entered and g.holds_state for g in members):
            return []
        return [g.group_id for g in members if not g.entered and g.group_id in self._broken]

    def _is_broken_for_all(self, now: float) -> bool:
        """Whether no member can train under the newest generation any more, and all are alive.

        All say so as a rule. Where nobody has entered it, one that could not is enough: the others
        wait for it. Most often a loss is the cause, and the news of it gets the time to come.
        """
        if len(self._broken) == len(self.members):
            return True
        has_begun = any(self.groups[member].entered >= self.generation for member in self.members)
        broken_for_s = self._silence.broken_for_s(self.generation, now)
        return bool(self._broken) and not has_begun and broken_for_s >= _NEWS_COMES_WITHIN_S

    def _announce(self, groups: tuple[int, ...], reason: str) -> None:
        self.generation += 1
        self.members = groups
        self._broken.clear()
        begins = bool(groups) and not self._has_trained
        for group in map(self.groups.__getitem__, groups):
            group.joined = group.joined or self.generation
            if self._has_trained and not group.holds_states_of_the_run:
                group.holds_state = False  # what it would have begun the run with
        pauses = self._ending is not None and self._ending.phase == RunPhase.PAUSED
        self._decisions.append(AnnounceGeneration(self.generation, groups, reason, pauses, begins))

    # The end of the run.

    def _end(self, phase: RunPhase, reason: str) -> None:
        """Begin the ending that comes first, see [Note: the end of the run]."""
        if self._ending is not None:
            return
        self._ending = SetRunPhase(phase, reason)
        for group in self._in(*ALIVE, GroupPhase.LEAVING):
            trains = group.phase in (GroupPhase.MEMBER, GroupPhase.LEAVING)
            if phase in _STOPS and group.joined:
                self._move(group.group_id, GroupPhase.LEAVING, reason)
            elif phase == RunPhase.FAILED or not trains:
                self._remove(group, GroupPhase.LEFT, reason)

    def _wind_down(self, ending: SetRunPhase) -> None:
        """Tell the members, and declare the end once no group is left."""
        remaining = self._in(*ALIVE, GroupPhase.LEAVING)
        if not remaining:
            self._set_phase(ending.phase, ending.reason)
        elif self.members and (
            ending.phase in _STOPS or any(self._is_stranded(g) for g in remaining)
        ):
            self._announce((), ending.reason)

    def _is_stranded(self, group: Group) -> bool:
        """Whether a group cannot finish with the others, for they have ended or went on."""
        return group.phase == GroupPhase.MEMBER and (
            group.entered < self.generation or group.group_id in self._broken
        )

    # Small changes.

    def _in(self, *phases: GroupPhase) -> list[Group]:
        return [group for group in self.groups.values() if group.phase in phases]

    def _living(self, group_id: int) -> Group | None:
        group = self.groups.get(group_id)
        return group if group is not None and group.phase not in GONE else None

    def _move(self, group_id: int, to: GroupPhase, reason: str, *only_from: GroupPhase) -> bool:
        group = self._living(group_id)
        if group is None or group.phase == to or (only_from and group.phase not in only_from):
            return False
        group.phase, group.reason = to, reason
        self._decisions.append(MarkGroup(group_id, to, reason))
        return True

    def _remove(self, group: Group, to: GroupPhase, reason: str) -> None:
        self._move(group.group_id, to, reason)
        self._decisions.append(StopGroup(group.group_id, reason))

    def _set_phase(self, phase: RunPhase, reason: str) -> None:
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self._decisions.append(SetRunPhase(phase, reason))
