"""Finds groups that hang while they start: nobody who trains misses them."""

from __future__ import annotations

from collections.abc import Iterable

from mics_core.elastic.events import GroupLost, GroupPhase
from mics_core.elastic.roster import Group, Rules

__all__ = ["overdue_starts"]


def overdue_starts(groups: Iterable[Group], rules: Rules, now: float) -> list[GroupLost]:
    """Return the groups that have their nodes and are not ready in time.

    The time begins anew when the workers run: only then is it theirs to build their shards.

    Args:
        groups: All groups.
        rules: The policy.
        now: The time.
    """
    return [
        GroupLost(group.group_id, _why(group, rules.start_s))
        for group in groups
        if group.phase == GroupPhase.STARTING and now - group.starting_since >= rules.start_s
    ]


def _why(group: Group, limit_s: float) -> str:
    if group.has_started:
        return f"It has not become ready within {limit_s:g} s of its workers' start."
    return f"Its workers have not run within {limit_s:g} s of its placement."
