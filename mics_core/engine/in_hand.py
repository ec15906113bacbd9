"""What a worker has computed of a step that broke: it goes on from there, not from the beginning.

[Note: work in hand]
When a group is lost, its part of the step is lost with it, and nothing else. Every other group has
the gradient of its own micro-batches: of some of them if it heard of the loss between two, of all
if its second hop broke, for the gradient is set aside before it crosses (`SecondHop`). So those who
enter the next generation tell each other which micro-batches of its first step they have in hand,
and divide the others alone. The step is then what it would have been: each micro-batch is in it
once, with its own random numbers, and only the order of additions differs (with `determinism:
bitwise` not even that).

What is in hand belongs to the states that it was computed with. A member that receives others'
states, because it was behind, begins with nothing. No two have the same in hand: a group is in each
generation from its first to its last, and what one of them divides every other knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from mics_core.data.order import divide_what_is_left

__all__ = ["Division", "InHand", "as_doubles", "from_doubles"]

_BITS = 48
"""Of a double; all whole numbers up to 2⁵³ are exact."""


@dataclass(slots=True)
class InHand:
    """A worker's part of a step: what it has computed, and what that used.

    Args:
        step: Number of the step.
        loss_sum: Sum of the token losses; a scalar in double.
        micro_batches: Numbers of the micro-batches whose gradients are in the buffer.
        num_tokens: Tokens that entered the loss.
        offsets: Places of the used samples in the global batch.
    """

    step: int
    loss_sum: torch.Tensor
    micro_batches: set[int] = field(default_factory=set)
    num_tokens: int = 0
    offsets: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Division:
    """Who computes what of a step, by rank in the replication group.

    Args:
        parts: Micro-batches of each member's part of the gradient; none if it listens.
        left: Those of them that it has still to compute, in order.
    """

    parts: tuple[tuple[int, ...], ...]
    left: tuple[tuple[int, ...], ...]

    @property
    def num_done(self) -> int:
        """Micro-batches that the members had in hand."""
        return sum(map(len, self.parts)) - sum(map(len, self.left))

    @classmethod
    def of(
        cls,
        num_micro_batches: int,
        num_members: int,
        active: Sequence[int],
        done: Sequence[Collection[int]] = (),
    ) -> Division:
        """Return how a step is divided among the members that take micro-batches.

        Args:
            num_micro_batches: Micro-batches of the step, over all groups.
            num_members: Members of the replication group.
            active: Ranks of those that take micro-batches.
            done: What each member has in hand of the step, by rank; nothing by default.
        """
        done = done or [()] * num_members
        left: list[tuple[int, ...]] = [()] * num_members
        shared = divide_what_is_left(num_micro_batches, [done[rank] for rank in active])
        for rank, indices in zip(active, shared, strict=True):
            left[rank] = indices
        parts = [tuple(sorted((*done[rank], *left[rank]))) for rank in range(num_members)]
        return cls(tuple(parts), tuple(left))


def as_doubles(micro_batches: Collection[int], num_micro_batches: int) -> list[float]:
    """Return micro-batches of a step as bits, which are gathered as numbers.

    Args:
        micro_batches: Their numbers.
        num_micro_batches: Micro-batches of the step, over all groups.
    """
    words = [0] * -(-num_micro_batches // _BITS)
    for index in micro_batches:
        words[index // _BITS] |= 1 << index % _BITS
    return [float(word) for word in words]


def from_doubles(words: Iterable[float]) -> frozenset[int]:
    """Return what `as_doubles` was given."""
    return frozenset(
        number * _BITS + bit
        for number, word in enumerate(words)
        for bit in range(_BITS)
        if int(word) >> bit & 1
    )
