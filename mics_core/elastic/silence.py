"""Finds members that have gone silent: those whose peers miss them, and runs of which all hang."""

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
    """Since when generations are known to be broken, and who has not said so."""

    _breaks: dict[int, float] = field(default_factory=dict)

    def broke(self, generation: int, now: float) -> None:
        """Note that a generation broke under a member."""
        self._breaks.setdefault(generation, now)

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
        silence_s = _silence_s(rules, usual_step_s)
        first_step_s = max(rules.first_step_s, silence_s)
        silent = []
        for broken, since in list(self._breaks.items()):
            waited_s = now - since
            for group in groups:
                limit_s = silence_s if group.trained >= broken else first_step_s
                only_leaves = group.phase == GroupPhase.LEAVING or is_ending
                expected = broken == generation or only_leaves
                is_silent = 0 < group.joined <= broken and group.broke < broken
                if group.phase in GONE or not (expected and is_silent) or waited_s < limit_s:
                    continue
                reason = f"It has not answered for {limit_s:g} s since generation {broken} broke."
                silent.append(GroupLost(group.group_id, reason))
            if waited_s >= first_step_s:
                del self._breaks[broken]
        return silent


def stalled_after_s(rules: Rules, usual_step_s: float) -> float:
    """Return after how long without a word from any member all of them are given up.

    A group that waits for another one tells so in time. If none does, all hang, or the only one:
    nobody is left to miss it.
    """
    silence_s = _silence_s(rules, usual_step_s)
    return _STALLED * max(rules.first_step_s, silence_s) + rules.quiet_s


def _silence_s(rules: Rules, usual_step_s: float) -> float:
    return max(rules.silence_s, _STEPS * usual_step_s)
