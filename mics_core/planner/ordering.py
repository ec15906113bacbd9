"""What `determinism: bitwise` keeps and sends: sums of micro-batches, as nodes of one binary tree.

See [Note: one order of additions] in `mics_core.engine.ordered_hop`, which builds the tree. Here
nodes are only counted: a run of micro-batches adds up to whole nodes, the largest that lie in it.
A step that goes on after a loss may have some more, for a member then has several runs.
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["most_nodes", "sums_kept"]

_MOST_GROUPS_LOOKED_AT = 1024
"""Runs of as many groups show the largest number of nodes, or all but."""


@lru_cache(maxsize=1024)
def most_nodes(num_micro_batches: int, num_groups: int) -> int:
    """Return the nodes of the group that has most of them when its run has ended (K).

    Args:
        num_micro_batches: Micro-batches of a step, over all groups.
        num_groups: Partition groups.
    """
    share, longer = divmod(num_micro_batches, num_groups)
    most = start = 0
    for group in range(min(num_groups, _MOST_GROUPS_LOOKED_AT)):
        stop = start + share + (group < longer)
        most = max(most, _num_nodes(start, stop, num_micro_batches))
        start = stop
    return most


def sums_kept(num_micro_batches: int, num_groups: int) -> int:
    """Return the sums that a group keeps at most while it computes its last micro-batches.

    Each is as large as the gradient buffer, and comes on top of it. Of a run that begins where a
    node of its size does, there is one for each power of two below its length; of any other run at
    most twice as many.

    Args:
        num_micro_batches: Micro-batches of a step, over all groups.
        num_groups: Partition groups.
    """
    longest = -(-num_micro_batches // num_groups)
    powers = longest.bit_length() - 1
    is_power = longest == 1 << powers and num_micro_batches == longest * num_groups
    return powers if num_groups == 1 or is_power else 2 * powers


def _num_nodes(start: int, stop: int, num_micro_batches: int) -> int:
    count = 0
    while start < stop:
        size = 1
        # The parent's node, which ends where the step does: does it begin here and lie in the run?
        while start % (2 * size) == 0 and min(start + 2 * size, num_micro_batches) <= stop:
            if start + size >= num_micro_batches:
                break  # it would be the same micro-batches
            size *= 2
        start = min(start + size, num_micro_batches)
        count += 1
    return count
