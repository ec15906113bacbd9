"""Finds groups that have gone silent: those whose peers miss them, and runs of which all hang.

[Note: who is missed]
A group may fall silent in a step: its generation breaks under the others, who say so, and it does
not. Or it falls silent between two generations: the others wait at the door of the next one, and
say who has not come. Generations may overtake each other meanwhile, so since when a group is missed
is remembered until it says something; and it is evicted upon a report that it is still missing. A
newcomer has no say against those that have trained: they may be in a long step, and if it cannot
reach them it is the one at fault.
"""

from __future__ import annotations

from collections.abc import Iterable
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

    def broke(self, generation: int, now: float) -> None:
        """Note that a generation broke under a member."""
        self._breaks.setdefault(generation, now)

    def broken_for_s(self, generation: int, now: float) -> float:
        """Return since when a generation is known to be broken; 0 if it is not."""
        return now - self._breaks.get(generation, now)

    def heard(self, group_id: int) -> None:
        """Note that a group said how it fares."""
        self._missed.pop(group_id, None)

    def missed(
        self, group: Group, by: Group, rules: Rules, now: float, *, usual_step_s: float
    ) -> GroupLost | None:
        """Note that a group has not come to the newest generation; see [Note: who is missed].

        Args:
            group: Who has not come.
            by: Who says so, another member of that generation.
            rules: The policy.
            now: The time.
            usual_step_s: How long a step takes at present.

        Returns:
            Its loss, if it has been missing for too long.
        """
        if by.entered == 0 < group.entered:
            return None
        waited_s = now - self._missed.setdefault(group.group_id, now)
        # One that has never been in a step has nothing to do but to come.
        is_at_first_step = group.trained < group.entered
        if waited_s < _limit_s(rules, usual_step_s, is_at_first_step=is_at_first_step):
            return None
        return GroupLost(
            group.group_id,
            f"It does not come to the next generation: group {by.group_id} has waited for it for"
            f" {waited_s:.0f} s.",
        )

    def silent(
        self,
        groups: Iterable[Group],
        generation: int,
        rules: Rules,
        now: float,
        *,
        usual_step_s: float,
        is_ending: bool,
    ) -> list[GroupLost]:
        """Return the members of a broken generation that do not answer.

        In a generation that follows the broken one a member may be silent because it copies the
        states; but a group that only has to leave has no such excuse.

        Args:
            groups: All groups.
            generation: The newest one.
            rules: The policy.
            now: The time.
            usual_step_s: How long a step takes at present.
            is_ending: Whether the run is to end.
        """
        longest_s = max(rules.first_step_s, _silence_s(rules, usual_step_s))
        silent = []
        for broken, since in list(self._breaks.items()):
            waited_s = now - since
            for group in groups:
                is_at_first_step = group.trained < broken <= group.entered
                limit_s = _limit_s(rules, usual_step_s, is_at_first_step=is_at_first_step)
                only_leaves = group.phase == GroupPhase.LEAVING or is_ending
                expected = broken == generation or only_leaves
                is_silent = 0 < group.joined <= broken and group.broke < broken
                if group.phase in GONE or not (expected and is_silent) or waited_s < limit_s:
                    continue
                reason = f"It has not answered for {limit_s:g} s since generation {broken} broke."
                silent.append(GroupLost(group.group_id, reason))
            if waited_s >= longest_s:
                del self._breaks[broken]
        return silent


def stalled_after_s(rules: Rules, usual_step_s: float) -> float:
    """Return after how long without a word from any member all of them are given up.

    A group that waits for another one tells so in time. If none does, all hang, or the only one:
    nobody is left to miss it.
    """
    silence_s = _silence_s(rules, usual_step_s)
    return _STALLED * max(rules.first_step_s, silence_s) + rules.quiet_s


def _limit_s(rules: Rules, usual_step_s: float, *, is_at_first_step: bool) -> float:
    silence_s = _silence_s(rules, usual_step_s)
    return max(rules.first_step_s, silence_s) if is_at_first_step else silence_s


def _silence_s(rules: Rules, usual_step_s: float) -> float:
    return max(rules.silence_s, _STEPS * usual_step_s)
