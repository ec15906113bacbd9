"""The membership machine: events in, decisions with a reason out.

Pure: no clock, no randomness, no I/O. The supervisor feeds it events with the time at which they
happened and carries out what it decides, so every sequence of events can be replayed in a test.

[Note: who holds the state]
A group holds the model states if it was launched to begin the run or has entered a generation. A
generation is announced only if one of its members holds them; when the last such group is lost, the
groups that waited to copy from it are useless and the run begins again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mics_core.elastic.events import (
    AnnounceGeneration,
    CancelRequested,
    Decision,
    Event,
    GroupBroken,
    GroupEnded,
    GroupEntered,
    GroupLost,
    GroupPhase,
    GroupPlaced,
    GroupReady,
    LaunchGroup,
    MarkGroup,
    RunPhase,
    SetRunPhase,
    StartRequested,
    StopGroup,
    Tick,
    WantedChanged,
)

__all__ = ["Group", "MembershipMachine", "Rules"]

_ALIVE = (GroupPhase.PLACING, GroupPhase.STARTING, GroupPhase.READY, GroupPhase.MEMBER)


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy of a run.

    Args:
        minimum: Fewer groups than this and the run waits.
        wanted: Groups wanted at the start.
        start_grace_s: How long the first ready group waits for the others of the start.
        silence_s: How long a member may take to answer after its generation broke under others.
        max_failed_starts: Consecutive groups that may fail before training, with no group alive
            that trains, until the run is given up.
        back_off_s: Pause after the first failed start; it doubles with each further one.
        max_back_off_s: Longest pause.
    """

    minimum: int
    wanted: int
    start_grace_s: float = 20.0
    silence_s: float = 60.0
    max_failed_starts: int = 3
    back_off_s: float = 1.0
    max_back_off_s: float = 60.0


@dataclass(slots=True)
class Group:
    """What the machine knows of one partition group."""

    group_id: int
    phase: GroupPhase
    reason: str
    holds_state: bool


@dataclass(slots=True)
class MembershipMachine:
    """The membership of one run.

    Args:
        rules: The policy; only `wanted` changes later, and is kept in `wanted`.
    """

    rules: Rules
    wanted: int = field(init=False)
    phase: RunPhase = RunPhase.PENDING
    reason: str = "The run has not begun."
    groups: dict[int, Group] = field(default_factory=dict)
    generation: int = 0
    members: tuple[int, ...] = ()
    _next_group_id: int = 0
    _broken: dict[int, str] = field(default_factory=dict)
    _broken_since: float | None = None
    _first_ready: float | None = None
    _failed_starts: int = 0
    _first_error: str = ""
    _launch_not_before: float = 0.0
    _ending: SetRunPhase | None = None
    _why_launch: str = ""
    _decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = self.rules.wanted

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Take in one event and return what follows from it, in order.

        Events about groups that are already gone are ignored, so late and doubled messages do no
        harm.

        Args:
            event: What happened.
            now: When, in seconds of a clock that never goes back.
        """
        if self.phase in (RunPhase.FINISHED, RunPhase.CANCELLED, RunPhase.FAILED):
            return []
        match event:
            case StartRequested():
                self._why_launch = f"The job wants {_groups(self.wanted)}."
            case GroupPlaced(group_id):
                self._move(
                    group_id, GroupPhase.STARTING, "Nodes were found for it.", GroupPhase.PLACING
                )
            case GroupReady(group_id):
                if self._move(
                    group_id,
                    GroupPhase.READY,
                    "Its workers have built their shards.",
                    GroupPhase.PLACING,
                    GroupPhase.STARTING,
                ):
                    self._first_ready = now if self._first_ready is None else self._first_ready
            case GroupEntered(group_id, generation, step):
                self._entered(group_id, generation, step)
            case GroupBroken(group_id, generation, step, error):
                self._note_broken(group_id, generation, step, error, now)
            case GroupLost(group_id, reason, own_error):
                self._lost(group_id, reason, own_error, now)
            case GroupEnded(group_id, finished):
                self._ended(group_id, finished, now)
            case WantedChanged(wanted, reason):
                self.wanted, self._why_launch = wanted, reason
            case CancelRequested(reason):
                self._end(RunPhase.CANCELLED, reason)
            case Tick():
                self._evict_the_silent(now)
        self._settle(now)
        decisions, self._decisions = self._decisions, []
        return decisions

    # What the events mean.

    def _entered(self, group_id: int, generation: int, step: int) -> None:
        group = self.groups.get(group_id)
        if group is None or group.phase not in (GroupPhase.READY, GroupPhase.MEMBER):
            return
        group.holds_state = True
        self._failed_starts, self._launch_not_before = 0, 0.0
        self._move(
            group_id,
            GroupPhase.MEMBER,
            f"It trains since step {step} (generation {generation}).",
            GroupPhase.READY,
        )
        if generation == self.generation:
            self._set_phase(RunPhase.RUNNING, f"Training with {_groups(len(self.members))}.")

    def _note_broken(
        self, group_id: int, generation: int, step: int, error: str, now: float
    ) -> None:
        if generation != self.generation or group_id not in self.members or self._ending:
            return
        self._broken[group_id] = f"Step {step} broke under {_named([group_id])}: {error}"
        self._broken_since = now if self._broken_since is None else self._broken_since

    def _evict_the_silent(self, now: float) -> None:
        if self._broken_since is None or now - self._broken_since < self.rules.silence_s:
            return
        for group_id in [member for member in self.members if member not in self._broken]:
            reason = (
                f"It has not answered for {self.rules.silence_s:g} s since generation"
                f" {self.generation} broke."
            )
            self._decisions.append(StopGroup(group_id, reason))
            self._lost(group_id, reason, own_error=False, now=now)

    def _lost(self, group_id: int, reason: str, own_error: bool, now: float) -> None:
        group = self.groups.get(group_id)
        if group is None or group.phase in (GroupPhase.LEFT, GroupPhase.LOST):
            return
        before = group.phase
        self._move(group_id, GroupPhase.LOST, reason)
        # Whatever is left of it must not go on: its processes are ended even if they seem gone.
        self._decisions.append(StopGroup(group_id, reason))
        if self._ending or before == GroupPhase.LEAVING:
            return
        self._why_launch = f"It replaces group {group_id}: {reason}"
        if own_error and not self._first_error:
            self._first_error = reason
        if before == GroupPhase.MEMBER:
            if own_error and not self._holders():
                self._end(RunPhase.FAILED, f"No group is left, and the last one failed: {reason}")
            return
        self._failed_starts += 1
        pause = self.rules.back_off_s * 2 ** (self._failed_starts - 1)
        self._launch_not_before = now + min(pause, self.rules.max_back_off_s)
        trains = any(other.phase == GroupPhase.MEMBER for other in self.groups.values())
        if self._failed_starts >= self.rules.max_failed_starts and not trains:
            self._end(
                RunPhase.FAILED,
                f"{self._failed_starts} groups failed before they could train. The first error:"
                f" {self._first_error or reason}",
            )

    def _ended(self, group_id: int, finished: bool, now: float) -> None:
        if finished:
            self._move(
                group_id, GroupPhase.LEFT, "All steps are done.", *_ALIVE, GroupPhase.LEAVING
            )
            if not self._ending:
                self._end(RunPhase.FINISHED, "All steps are done.")
            return
        group = self.groups.get(group_id)
        if group is None:
            return
        if group.phase == GroupPhase.LEAVING or self._ending:
            self._move(group_id, GroupPhase.LEFT, group.reason, *_ALIVE, GroupPhase.LEAVING)
        else:
            self._lost(group_id, "It ended without being asked to.", own_error=False, now=now)

    # What follows from the state that the event left.

    def _settle(self, now: float) -> None:
        if self._ending is None:
            self._match_wanted(now)
            self._form_generation(now)
        if self._ending is not None:
            self._wind_down(self._ending)

    def _match_wanted(self, now: float) -> None:
        alive = [group for group in self.groups.values() if group.phase in _ALIVE]
        for group in self._surplus(alive, len(alive) - self.wanted):
            reason = f"{_groups(self.wanted)} are wanted: {self._why_launch}"
            if group.phase == GroupPhase.MEMBER or group.group_id in self.members:
                self._move(group.group_id, GroupPhase.LEAVING, reason)
            else:
                self._move(group.group_id, GroupPhase.LEFT, reason)
                self._decisions.append(StopGroup(group.group_id, reason))
        if now >= self._launch_not_before:
            for _ in range(self.wanted - len(alive)):
                self._launch()

    @staticmethod
    def _surplus(alive: list[Group], number: int) -> list[Group]:
        """Choose who goes: first those that do not train yet, then the youngest."""
        order = sorted(alive, key=lambda group: (_ALIVE.index(group.phase), -group.group_id))
        return order[: max(0, number)]

    def _launch(self) -> None:
        group_id, self._next_group_id = self._next_group_id, self._next_group_id + 1
        begins_run = self.generation == 0 or not self._holders()
        self.groups[group_id] = Group(group_id, GroupPhase.PLACING, self._why_launch, begins_run)
        self._decisions.append(LaunchGroup(group_id, begins_run, self._why_launch))
        self._decisions.append(MarkGroup(group_id, GroupPhase.PLACING, self._why_launch))

    def _holders(self) -> list[Group]:
        return [
            group
            for group in self.groups.values()
            if group.holds_state and group.phase in (*_ALIVE, GroupPhase.LEAVING)
        ]

    def _form_generation(self, now: float) -> None:
        joined = (GroupPhase.READY, GroupPhase.MEMBER)
        staying = [group_id for group_id in self.members if self.groups[group_id].phase in joined]
        new = [
            group_id
            for group_id, group in self.groups.items()
            if group.phase == GroupPhase.READY and group_id not in staying
        ]
        wished = (*staying, *new)
        rebuild = bool(self.members) and set(self._broken) >= set(self.members)
        if wished == self.members and not rebuild:
            return
        if not self.members and not self._start_is_due(new, now):
            return
        if len(wished) < self.rules.minimum:
            if self.generation:
                self._set_phase(
                    RunPhase.WAITING,
                    f"{_groups(len(wished))} alive, {self.rules.minimum} needed."
                    f" {self._why_launch}",
                )
            return
        if not any(self.groups[group_id].holds_state for group_id in wished):
            self._begin_again(wished)
            return
        self._announce(wished, self._reason_for(staying, new, rebuild))

    def _start_is_due(self, ready: list[int], now: float) -> bool:
        """Whether to begin with the groups that are there, or to wait for more."""
        if len(ready) < self.rules.minimum:
            return False
        waited = (
            self._first_ready is not None and now - self._first_ready >= self.rules.start_grace_s
        )
        return len(ready) >= self.wanted or waited

    def _reason_for(self, staying: list[int], new: list[int], rebuild: bool) -> str:
        parts = []
        for group_id in self.members:
            group = self.groups[group_id]
            if group.phase == GroupPhase.LOST:
                parts.append(f"Group {group_id} was lost: {group.reason}")
            elif group.phase == GroupPhase.LEAVING:
                parts.append(f"Group {group_id} leaves: {group.reason}")
        if new and self.generation == 0:
            parts.append(f"Training begins with {_named(new)}.")
        elif new:
            parts.append(
                f"{_named(new).capitalize()} joins."
                if len(new) == 1
                else f"{_named(new).capitalize()} join."
            )
        if rebuild and not parts:
            parts.append(
                f"All groups are alive, but their connections broke. {self._broken[staying[0]]}"
            )
        return " ".join(parts)

    def _announce(self, groups: tuple[int, ...], reason: str) -> None:
        self.generation += 1
        self.members = groups
        self._broken, self._broken_since = {}, None
        self._decisions.append(AnnounceGeneration(self.generation, groups, reason))

    def _begin_again(self, useless: tuple[int, ...]) -> None:
        """No living group holds the model states, see [Note: who holds the state]."""
        reason = "Every group that held the model states is lost, so the run begins again."
        self._why_launch = reason
        for group_id in useless:
            self._move(group_id, GroupPhase.LEFT, reason)
            self._decisions.append(StopGroup(group_id, reason))
        self.members, self._first_ready = (), None
        self._set_phase(RunPhase.WAITING, reason)
        for _ in range(self.wanted):
            self._launch()

    # The end of the run.

    def _end(self, phase: RunPhase, reason: str) -> None:
        self._ending = SetRunPhase(phase, reason)
        for group in list(self.groups.values()):
            if group.phase in (GroupPhase.PLACING, GroupPhase.STARTING, GroupPhase.READY):
                if phase == RunPhase.CANCELLED and group.group_id in self.members:
                    continue  # it waits for its first step, and learns of the end there
                self._move(group.group_id, GroupPhase.LEFT, reason)
                self._decisions.append(StopGroup(group.group_id, reason))
        if phase == RunPhase.CANCELLED and self.members:
            for group_id in self.members:
                self._move(group_id, GroupPhase.LEAVING, reason, *_ALIVE)
            self._announce((), reason)
        elif phase == RunPhase.FAILED:
            for group_id in self.members:
                if self.groups[group_id].phase in (*_ALIVE, GroupPhase.LEAVING):
                    self._move(group_id, GroupPhase.LEFT, reason)
                    self._decisions.append(StopGroup(group_id, reason))

    def _wind_down(self, ending: SetRunPhase) -> None:
        """Declare the end once no group is left."""
        if not any(group.phase in (*_ALIVE, GroupPhase.LEAVING) for group in self.groups.values()):
            self._set_phase(ending.phase, ending.reason)

    # Small changes.

    def _move(self, group_id: int, to: GroupPhase, reason: str, *only_from: GroupPhase) -> bool:
        group = self.groups.get(group_id)
        if group is None or group.phase == to or (only_from and group.phase not in only_from):
            return False
        group.phase, group.reason = to, reason
        self._decisions.append(MarkGroup(group_id, to, reason))
        return True

    def _set_phase(self, phase: RunPhase, reason: str) -> None:
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self._decisions.append(SetRunPhase(phase, reason))


def _groups(number: int) -> str:
    return f"{number} partition group{'' if number == 1 else 's'}"


def _named(group_ids: list[int]) -> str:
    names = [str(group_id) for group_id in group_ids]
    if len(names) == 1:
        return f"group {names[0]}"
    return f"groups {', '.join(names[:-1])} and {names[-1]}"
