"""What is known of a run and its groups, and the small changes that all decisions are made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from mics_core.elastic.events import (
    AnnounceGeneration,
    Decision,
    GroupPhase,
    LaunchGroup,
    MarkGroup,
    RunPhase,
    SetRunPhase,
    StopGroup,
)
from mics_core.elastic.rebuilding import Rebuilding
from mics_core.elastic.repeated_fault import RepeatedFault
from mics_core.elastic.replacements import Replacements, Vacancy
from mics_core.elastic.roster import ALIVE, GONE, Group, Rules
from mics_core.elastic.silence import Silence

__all__ = ["STOPS", "RunState"]

STOPS = (RunPhase.CANCELLED, RunPhase.PAUSED)
"""Endings at which the members leave at a step boundary."""


@dataclass(slots=True)
class RunState:
    """One run.

    Args:
        rules: The policy; `minimum` may change later, and so does what is wanted, see `wanted`.
        wanted: Groups that are wanted.
        phase: Where the run stands.
        reason: Why it stands there.
        groups: All groups ever, by id.
        generation: The newest generation that was announced; 0 before the first.
        members: Its groups, by place.
        why_wanted: Why so many groups are wanted; empty before the run is to start.
        training_with: The sentence of a run that trains.
        has_trained: Whether a group has entered a generation: from then on there are states.
        last_own_error: The error of the member that was lost last, if its own code or data failed.
        usual_step_s: How long a step takes at present; 0 while that is not known.
        replacements: Which groups are to be launched.
        rebuilding: What the members say about the end of the newest generation.
        silence: Who is missed.
        fault: The errors at one step.
        ending: The ending that has begun, see [Note: the end of the run] in
            `mics_core.elastic.settling`.
        decisions: What has been decided and not been carried out yet, in order.
    """

    rules: Rules
    wanted: int = field(init=False)
    phase: RunPhase = RunPhase.PENDING
    reason: str = "The run has not begun."
    groups: dict[int, Group] = field(default_factory=dict)
    generation: int = 0
    members: tuple[int, ...] = ()
    why_wanted: str = ""
    training_with: str = ""
    has_trained: bool = False
    last_own_error: str = ""
    usual_step_s: float = 0.0
    replacements: Replacements = field(init=False)
    rebuilding: Rebuilding = field(init=False)
    silence: Silence = field(default_factory=Silence)
    fault: RepeatedFault = field(default_factory=RepeatedFault)
    ending: SetRunPhase | None = None
    decisions: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wanted = self.rules.wanted
        self.replacements = Replacements(self.rules)
        self.rebuilding = Rebuilding(self.rules)

    def training(self, now: float) -> str:
        """Say with how many groups it trains, and what the next launch waits for."""
        return f"{self.training_with} {self.replacements.pause(now)}".rstrip()

    @property
    def newest_groups(self) -> list[Group]:
        """The groups of the newest generation, by place."""
        return [self.groups[member] for member in self.members]

    def within(self, *phases: GroupPhase) -> list[Group]:
        """Return the groups in any of these phases, by id."""
        return [group for group in self.groups.values() if group.phase in phases]

    def living(self, group_id: int) -> Group | None:
        """Return a group that is known and not gone."""
        group = self.groups.get(group_id)
        return group if group is not None and group.phase not in GONE else None

    def move(self, group_id: int, to: GroupPhase, reason: str, *only_from: GroupPhase) -> bool:
        """Move a living group to another phase; return whether that changed anything.

        Args:
            group_id: The group.
            to: Its new phase.
            reason: Why it goes there.
            only_from: Phases that it may come from; all without any.
        """
        group = self.living(group_id)
        if group is None or group.phase == to or (only_from and group.phase not in only_from):
            return False
        group.phase, group.reason = to, reason
        self.decisions.append(MarkGroup(group_id, to, reason))
        return True

    def remove(self, group: Group, to: GroupPhase, reason: str) -> None:
        """Have a group's processes ended, which counts as gone from now on."""
        self.move(group.group_id, to, reason)
        self.decisions.append(StopGroup(group.group_id, reason))

    def set_phase(self, phase: RunPhase, reason: str) -> None:
        """Set the run's phase and its reason, and tell if either is new."""
        if (phase, reason) != (self.phase, self.reason):
            self.phase, self.reason = phase, reason
            self.decisions.append(SetRunPhase(phase, reason))

    def launch(self, vacancy: Vacancy) -> None:
        """Have a group launched for a vacancy."""
        group_id, reason = len(self.groups), vacancy.reason
        begins_run = not self.has_trained
        self.groups[group_id] = Group(
            group_id,
            GroupPhase.PLACING,
            reason,
            begins_run,
            attempt=self.replacements.starts.failed,
            lineage=group_id if vacancy.lineage is None else vacancy.lineage,
            early_losses=self.replacements.early_losses.failed,
        )
        self.decisions.append(LaunchGroup(group_id, begins_run, reason))
        self.decisions.append(MarkGroup(group_id, GroupPhase.PLACING, reason))

    def announce(self, groups: tuple[int, ...], reason: str) -> None:
        """Announce the next generation; one without groups tells the members to leave."""
        self.generation += 1
        self.members = groups
        self.rebuilding.begin_generation()
        begins = bool(groups) and not self.has_trained
        for group in map(self.groups.__getitem__, groups):
            group.joined = group.joined or self.generation
            if self.has_trained and not group.holds_states_of_the_run:
                group.holds_state = False  # what it would have begun the run with
        pauses = self.ending is not None and self.ending.phase == RunPhase.PAUSED
        self.decisions.append(AnnounceGeneration(self.generation, groups, reason, pauses, begins))

    def end(self, phase: RunPhase, reason: str) -> None:
        """Begin the ending that comes first, see `ending`."""
        if self.ending is not None:
            return
        self.ending = SetRunPhase(phase, reason)
        for group in self.within(*ALIVE, GroupPhase.LEAVING):
            trains = group.phase in (GroupPhase.MEMBER, GroupPhase.LEAVING)
            if phase in STOPS and group.joined:
                self.move(group.group_id, GroupPhase.LEAVING, reason)
            elif phase == RunPhase.FAILED or not trains:
                self.remove(group, GroupPhase.LEFT, reason)
