"""How the membership machine's reasons name groups."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["counted", "named"]


def counted(number: int) -> str:
    """Return "1 partition group", "2 partition groups", …"""
    return f"{number} partition group{'' if number == 1 else 's'}"


def named(group_ids: Sequence[int]) -> str:
    """Return "group 1", "groups 1 and 2", "groups 1, 2 and 3", …"""
    if len(group_ids) == 1:
        return f"group {group_ids[0]}"
    names = [str(group_id) for group_id in group_ids]
    return f"groups {', '.join(names[:-1])} and {names[-1]}"
