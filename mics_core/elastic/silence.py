"""Finds groups that have gone silent: those whose peers miss them, and runs of which all hang.

[Note: who is missed]
A group may fall silent in a step: its generation breaks under the others, who say so, and it does
not. Or it falls silent between two generations: the others wait at the door of the next one, and
say who has not come. Generations may overtake each other meanwhile, so since when a group is missed
is remembered until it says something or is seen to have come; and it is evicted upon a report that
it is still missing. A newcomer has no say against those that have trained: they may be in a long
step, and if it cannot reach them it is the one at fault.

A group that is cut off from the others misses them as they miss it. So one that says nothing is
evicted if half of those who speak miss it. One that speaks is evicted if most of the others miss
it, and they are more than those whom it misses; if they are as many, it is if it hosts the store,
which all of them have to reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mics_core.elastic.events import GroupLost, GroupPhase
from mics_core.elastic.roster import GONE, Group, Rules

__all__ = ["Silence", "stalled_after_s"]

_STEPS = 5.0
"""A member may still be at work on the step that broke under others, and does not know."""
_STALLED = 2.0
"""So that those who can tell of others have had their time."""


@dataclass(slots=True)
class Silence:
    """Since when generations are known to be broken and groups to be missing."""

    _breaks: dict[int, float] = field(default_factory=dict)
    _missed: dict[int, float] = field(default_factory=dict)
    _door: int = 0
    _missing: dict[int, frozenset[int]] = field(default_factory=dict)
    """Whom each group misses that waits at the door of generation `_door`."""

    def broke(self, generation: int, now: float) -> None:
        """Note that a generation broke under a member."""
        self._breaks.setdefault(generation, now)

    def broken_for_s(self, generation: int, now: float) -> float:
        """Return since when a generation is known to be broken; 0 if it is not."""
        return now - self._breaks.get(generation, now)

    def heard(self, group_id: int) -> None:
        """Note that a group said how it fares, or was seen."""
        self._missed.pop(group_id, None)

    def missed(
        self,
        missing: Iterable[Group],
        by: Group,
        members: Sequence[int],
        generation: int,
        rules: Rules,
        now: float,
        *,
        usual_step_s: float,
        has_newcomer: bool,
    ) -> list[GroupLost]:
        """Note that groups have not come to the newest generation; see [Note: who is missed].

        Args:
            missing: Who has not come.
            by: Who says so.
            members: The generation's members by rank; the first one hosts the store.
            generation: Its number.
            rules: The policy.
            now: The time.
            usual_step_s: How long a step takes at present.
            has_newcomer: Whether a group has yet to compute its first step, so that nothing can be
                foretold of how long the others are at theirs with it.

        Returns:
            The losses of those that have been missing for too long.
        """
        if generation != self._door:
            self._door, self._missing = generation, {}
        counted = [g for g in missing if by.entered > 0 or g.entered == 0]
        if counted:
            self._missing[by.group_id] = frozenset(group.group_id for group in counted)
        lost = []
        for group in counted:
            waited_s = now - self._missed.setdefault(group.group_id, now)
            is_at_first_step = group.trained < group.entered and group.broke < group.entered
            unknown = is_at_first_step and has_newcomer
            limit_s = _limit_s(rules, usual_step_s, nothing_foretold=unknown)
            if waited_s < limit_s or not self._is_at_fault(group.group_id, members):
                continue
            waits = f"group {by.group_id} has waited for it for {waited_s:.0f} s"
            reason = f"It does not come to the next generation: {waits}."
            lost.append(GroupLost(group.group_id, reason))
        return lost

    def _is_at_fault(self, group_id: int, members: Sequence[int]) -> bool:
        speak = {who: whom for who, whom in self._missing.items() if who in members}
        num_others = len(speak.keys() - {group_id})
        num_missing_it = sum(group_id in whom for whom in speak.values())
        if group_id not in speak:
            return 2 * num_missing_it >= num_others
        num_it_misses = len(speak[group_id] & speak.keys())
        hosts_store = group_id == members[0]
        return 2 * num_missing_it > num_others and (
            num_missing_it > num_it_misses or (num_missing_it == num_it_misses and hosts_store)
        )

    def silent(
        self,
        groups: Iterable[Group],
        generation: int,
        rules: Rules,
        now: float,
        *,
        usual_step_s: float,
        has_newcomer: Callable[[int], bool],
        is_ending: bool,
    ) -> list[GroupLost]:
        """Return the members of a broken generation that do not answer.

        In a generation that follows the broken one a member may be silent because it copies the
        states; but a group that only has to leave has no such excuse. And in one that nobody has
        entered they wait for each other; those who do tell whom they miss.

        Args:
            groups: All groups.
            generation: The newest one.
            rules: The policy.
            now: The time.
            usual_step_s: How long a step takes at present.
            has_newcomer: Whether a group of a generation has yet to compute its first step.
            is_ending: Whether the run is to end.
        """
        longest_s = max(rules.first_step_s, _silence_s(rules, usual_step_s))
        silent = []
        for broken, since in list(self._breaks.items()):
            waited_s = now - since
            for group in groups:
                is_at_first_step = group.trained < broken <= group.entered
                unknown = is_at_first_step and has_newcomer(broken)
                limit_s = _limit_s(rules, usual_step_s, nothing_foretold=unknown)
                only_leaves = group.phase == GroupPhase.LEAVING or is_ending
                expected = only_leaves or broken == generation == group.met
                # Who was seen in a later one has gone past it.
                is_silent = 0 < group.joined <= broken and group.broke < broken >= group.met
                if group.phase in GONE or not (expected and is_silent) or waited_s < limit_s:
                    continue
                reason = f"It has not answered for {limit_s:g} s since generation {broken} broke."
                silent.append(GroupLost(group.group_id, reason))
            if waited_s >= longest_s and broken != generation:
                del self._breaks[broken]
        return silent


def stalled_after_s(rules: Rules, usual_step_s: float) -> float:
    """Return after how long without a word from any member all of them are given up.

    A group that waits for another one tells so in time. If none does, all hang, or the only one:
    nobody is left to miss it.
    """
    silence_s = _silence_s(rules, usual_step_s)
    return _STALLED * max(rules.first_step_s, silence_s) + rules.quiet_s


def _limit_s(rules: Rules, usual_step_s: float, *, nothing_foretold: bool) -> float:
    silence_s = _silence_s(rules, usual_step_s)
    return max(rules.first_step_s, silence_s) if nothing_foretold else silence_s


def _silence_s(rules: Rules, usual_step_s: float) -> float:
    return max(rules.silence_s, _STEPS * usual_step_s)
