"""The second hop of `determinism: bitwise`: one order of additions, whoever computes what.

[Note: one order of additions]
The micro-batches of a step are the leaves of a binary tree: the node of size s = 2^l at k·s adds
its two halves, or is its only half where the step ends first. Floating-point addition gives a bit
pattern that depends on the order, so every sum here is the value of a node of this tree. A
partition group takes a run of micro-batches and adds up whatever whole nodes lie in it, at most
2·log2(m) for m micro-batches; in a step that goes on after a loss a few runs, with as many nodes
each. Members exchange these nodes and finish the tree. Neither the number
of groups nor who takes which micro-batch, and when, changes a bit.

What it costs: with K nodes in the largest run, each member sends (K + 1)/2 times the bytes of the
usual second hop, nothing overlaps backward, and up to K + 1 gradients are held instead of one.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from mics_core.comm.replication import ReplicationGroup
from mics_core.errors import ReplicationError

__all__ = ["OrderedHop", "TreeSum", "nodes_of"]

_SLICE_NUMBERS = 1 << 20
"""Numbers of the gradient that are exchanged at a time, which bounds the buffers."""


class TreeSum:
    """Adds up micro-batches, node by node.

    See [Note: one order of additions].

    Args:
        num_micro_batches: Micro-batches of a step, over all groups.
    """

    def __init__(self, num_micro_batches: int):
        self._num_micro_batches = num_micro_batches
        self.nodes: list[tuple[range, torch.Tensor | None]] = []
        """What there is so far, in the order of the step."""

    def add(self, node: range, values: torch.Tensor | None) -> None:
        """Put a node in its place, and add up what can be.

        Args:
            node: Its micro-batches, none of which is there yet.
            values: Its sum, which is written to; none to learn the nodes alone.
        """
        place = bisect(self.nodes, node.start, key=_start)
        self.nodes.insert(place, (node, values))
        while (left := self._left_half(place)) is not None:
            self._add_up(left)
            place = left

    def _left_half(self, place: int) -> int | None:
        """Return the first of two nodes that make up a whole one, of which one is at `place`."""
        for left in (place - 1, place):
            is_pair = left >= 0 and left + 1 < len(self.nodes)
            if is_pair and self._are_halves(self.nodes[left][0], self.nodes[left + 1][0]):
                return left
        return None

    def _add_up(self, place: int) -> None:
        (left, total), (right, addend) = self.nodes[place : place + 2]
        if total is not None and addend is not None:
            total.add_(addend)
        self.nodes[place : place + 2] = [(range(left.start, right.stop), total)]

    def _are_halves(self, left: range, right: range) -> bool:
        """Whether two nodes have the same parent."""
        size = len(left)
        ends = min(left.stop + size, self._num_micro_batches)
        return left.start % (2 * size) == 0 and right.start == left.stop and right.stop == ends


def nodes_of(micro_batches: Iterable[int], num_micro_batches: int) -> list[range]:
    """Return the nodes that some micro-batches of a step add up to, in their order."""
    total = TreeSum(num_micro_batches)
    for index in micro_batches:
        total.add(range(index, index + 1), None)
    return [node for node, _ in total.nodes]


def _start(entry: tuple[range, torch.Tensor | None]) -> int:
    return entry[0].start


class OrderedHop:
    """Brings the gradients of a step together, in the order of the tree.

    Args:
        flat: The gradient buffer: of one micro-batch after each backward, of the step at the end.
        num_micro_batches: Micro-batches of a step, over all groups.
    """

    def __init__(self, flat: torch.Tensor, num_micro_batches: int):
        self._flat = flat
        self._num_micro_batches = num_micro_batches
        self._sum = TreeSum(num_micro_batches)
        self._replication: ReplicationGroup | None = None
        self._summary: Callable[[], list[float]] | None = None
        self._parts: tuple[tuple[int, ...], ...] = ()

    def keep_gradients(self) -> None:
        """Do nothing: what this member has added up is kept apart from what it receives."""

    def begin_step(self, parts: Sequence[Sequence[int]], *, goes_on: bool) -> None:
        """Begin a step.

        Args:
            parts: Each member's micro-batches, by rank; a member without sends zeros.
            goes_on: Whether this member goes on with what it has of the same step.
        """
        self._parts = tuple(tuple(part) for part in parts)
        if not goes_on:
            self._sum = TreeSum(self._num_micro_batches)

    def begin(self, replication: ReplicationGroup, summary: Callable[[], list[float]]) -> None:
        """Begin the last micro-batch's backward.

        Args:
            replication: The replication group that the gradient crosses.
            summary: Computes this worker's summary of the step.
        """
        self._replication, self._summary = replication, summary

    def unit_complete(self, index: int) -> None:
        """Do nothing: a gradient leaves as a whole."""

    def micro_batch_complete(self, index: int) -> None:
        """Take the buffer as the gradient of one micro-batch."""
        self._sum.add(range(index, index + 1), self._flat.clone())

    def finish(self) -> tuple[list[list[float]], str]:
        """Bring the groups' nodes together in the buffer.

        Returns:
            The summaries of all members by rank, and the first error; empty without one. With an
            error the buffer is undefined, and this member's own sums are as they were.
        """
        replication, summary = self._replication, self._summary
        assert replication is not None
        assert summary is not None
        self._replication = self._summary = None
        try:
            rows = replication.gather_doubles(summary())
            self._exchange(replication)
        except ReplicationError as error:
            return [], str(error)
        return rows, ""

    def close(self) -> None:
        """Do nothing: there is no thread."""

    def _exchange(self, replication: ReplicationGroup) -> None:
        parts = [values for _, values in self._sum.nodes if values is not None]
        if replication.size == 1:
            (whole,) = parts
            self._flat.copy_(whole)
            return
        nodes = [nodes_of(micro_batches, self._num_micro_batches) for micro_batches in self._parts]
        for part in _slices(self._flat.numel()):
            self._flat[part.start : part.stop] = self._sum_slice(replication, parts, part, nodes)

    def _sum_slice(
        self,
        replication: ReplicationGroup,
        parts: list[torch.Tensor],
        part: range,
        nodes: list[list[range]],
    ) -> torch.Tensor:
        """Sum one slice: each member finishes the tree for 1/N of it and hands that round.

        Args:
            replication: The replication group, of N members.
            parts: The sum of each of this member's nodes.
            part: The slice of n numbers.
            nodes: The nodes of each member, by rank.

        Returns:
            The slice of the step's gradient (n).
        """
        length, size = len(part), replication.size
        most = max(len(of_member) for of_member in nodes)
        piece = -(-length // size)
        # Member, node, number; members with fewer nodes and the end of the slice send zeros.
        rows = self._flat.new_zeros(size, most, piece)
        for place, values in enumerate(parts):
            mine = values[part.start : part.stop]
            padded = torch.nn.functional.pad(mine, (0, size * piece - length))
            rows[:, place] = padded.view(size, piece)
        received = replication.exchange(rows.view(size, -1)).view(size, most, piece)
        total = TreeSum(self._num_micro_batches)
        for rank, of_member in enumerate(nodes):
            for place, node in enumerate(of_member):
                total.add(node, received[rank, place])
        ((_, whole),) = total.nodes
        assert whole is not None
        return replication.gather(whole).view(-1)[:length]


def _slices(length: int) -> Iterator[range]:
    for begin in range(0, length, _SLICE_NUMBERS):
        yield range(begin, min(begin + _SLICE_NUMBERS, length))
