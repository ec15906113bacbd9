"""Generations that broke though all their members live, and when these meet again.

[Note: members that meet again]
A generation that is broken for all of its members is announced once more: at once where a step
breaks for the first time, with growing pauses where the members cannot get past it. Newcomers that
cannot get in are given up then, for the others can do without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mics_core.elastic.back_off import BackOff
from mics_core.elastic.events import GroupBroken
from mics_core.elastic.roster import Group, Rules

__all__ = ["Rebuilding"]

_NEWS_COMES_WITHIN_S = 2.0


@dataclass(slots=True)
class Rebuilding:
    """What the members of the newest generation say about its end, and the attempts to mend it.

    See [Note: members that meet again].

    Args:
        rules: The policy.
        told: What each member says under whom the newest generation broke, by group.
    """

    rules: Rules
    told: dict[int, GroupBroken] = field(default_factory=dict)
    _attempts: BackOff = field(init=False)
    _step: int = -1
    _in_vain: int = 0
    """Times in a row that the same members were to meet again and nobody entered."""

    def __post_init__(self) -> None:
        self._attempts = BackOff(self.rules.back_off_s, self.rules.max_back_off_s)

    def begin_run_again(self) -> None:
        """Forget how far the members came: the run begins again."""
        self.told.clear()
        self._step = -1

    def begin_generation(self) -> None:
        """Note that another generation is announced."""
        self.told.clear()

    def have_met(self) -> None:
        """Note that the members are all there."""
        self._in_vain = 0

    def note(self, event: GroupBroken) -> None:
        """Note that the newest generation broke under a member; its first word counts."""
        self.told.setdefault(event.group_id, event)

    def newest(self, members: Sequence[Group], generation: int) -> list[Group]:
        """Return who holds the newest states for sure among members that all live.

        After a loss a member may be a step behind the others, and has entered the next generation
        only when it has caught up. Where no member can train any more, each has said what it has.

        Args:
            members: Those of the newest generation.
            generation: Its number.
        """
        if not self.told:
            return [g for g in members if g.holds_state and g.entered == generation]
        if len(self.told) < len(members):
            return []
        told = {group_id: event for group_id, event in self.told.items() if event.holds_state}
        step = max((event.step for event in told.values()), default=0)
        return [g for g in members if g.group_id in told and told[g.group_id].step == step]

    def is_due(self, members: Sequence[Group], generation: int, broken_for_s: float) -> bool:
        """Whether no member can train under the newest generation any more.

        All say so as a rule. Where nobody has entered it, one that could not is enough: the others
        wait for it. Most often a loss is the cause, and the news of it gets the time to come.

        Args:
            members: Those of the newest generation, all alive.
            generation: Its number.
            broken_for_s: How long ago the first of them said that it broke.
        """
        if len(self.told) == len(members):
            return True
        has_begun = any(group.entered >= generation for group in members)
        return bool(self.told) and not has_begun and broken_for_s >= _NEWS_COMES_WITHIN_S

    def cause(self, members: Sequence[Group]) -> str:
        """Return what broke under the first member that tells of it."""
        first = self._first(members)
        return f"Step {first.step} broke under group {first.group_id}: {first.error}"

    def shut_out(self, members: Sequence[Group]) -> list[int]:
        """Return newcomers that could not get in twice in a row, where others can do without."""
        if not self._in_vain or not any(g.entered and g.holds_state for g in members):
            return []
        return [g.group_id for g in members if not g.entered and g.group_id in self.told]

    def begin(self, members: Sequence[Group], now: float) -> str:
        """Begin an attempt, unless a pause is due before it; return why it has to wait, if so."""
        step = max(event.step for event in self.told.values())
        if step > self._step:
            self._attempts.succeed()
        elif now < self._attempts.not_before:
            failed = self._attempts.failed
            times = "once" if failed == 1 else f"{failed} times"
            return (
                "All groups are alive, but reconnecting them has not helped"
                f" {times}; they try again after {self._attempts.pause_s:g} s."
            )
        self._step = step
        self._in_vain += 1
        error = self._first(members).error
        self._attempts.fail(self._attempts.failed, error, own_error=False, now=now)
        return ""

    def _first(self, members: Sequence[Group]) -> GroupBroken:
        return next(self.told[group.group_id] for group in members if group.group_id in self.told)
