"""How the membership machine's reasons name groups, and say who comes and goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mics_core.elastic.events import GroupPhase
from mics_core.elastic.roster import JOINED, Group

__all__ = ["counted", "named", "why_groups_come", "why_members_go"]


def counted(number: int) -> str:
    """Return "1 partition group", "2 partition groups", …"""
    return f"{number} partition group{'' if number == 1 else 's'}"


def named(group_ids: Sequence[int]) -> str:
    """Return "group 1", "groups 1 and 2", "groups 1, 2 and 3", …"""
    if len(group_ids) == 1:
        return f"group {group_ids[0]}"
    names = [str(group_id) for group_id in group_ids]
    return f"groups {', '.join(names[:-1])} and {names[-1]}"


def why_members_go(members: Iterable[Group]) -> str:
    """Say which members were lost or leave, and why; nothing if all stay."""
    parts = []
    for group in members:
        if group.phase == GroupPhase.LOST:
            parts.append(f"Group {group.group_id} was lost: {group.reason}")
        elif group.phase not in JOINED:
            parts.append(f"Group {group.group_id} leaves: {group.reason}")
    return " ".join(parts)


def why_groups_come(new: Iterable[Group]) -> str:
    """Say who joins, and who was on its way out and is called back."""
    groups = list(new)
    joins = [group.group_id for group in groups if group.phase == GroupPhase.READY]
    called = [group for group in groups if group.phase == GroupPhase.MEMBER]
    parts = [f"Group {group.group_id} stays: {group.reason}" for group in called]
    if joins:
        parts.append(f"{named(joins).capitalize()} join{'s' if len(joins) == 1 else ''}.")
    return " ".join(parts)
