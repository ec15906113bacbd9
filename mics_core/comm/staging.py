"""Gathers and scatters inside a node through memory that its workers share.

[Note: turns of a staging memory]
Each worker has two slots in memory that the others of its node read (see the note in `shared`). In
a turn it puts what they are to have into one of them, passes the door, and reads theirs. It needs
not wait until they have read its own: they pass the next turn's door only when they have, and the
slot is written again in the turn after that. So there is one door a turn. What is larger than a
slot goes in several turns; so memory is bounded, and what is read has just been written.

What is put into a slot is copied once more than it need be. In exchange the tensors may lie where
FSDP2 wants them, for as long as it wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from mics_core.comm.shared import Neighbours, Offer, SharedMemory
from mics_core.planner.memory import STAGING_SLOT_BYTES

__all__ = ["Staging", "share_staging"]

_NUM_SLOTS = 2
_Value = TypeVar("_Value")


class Staging:
    """This worker's slots and its view of the others'; used by one thread.

    All must call the same methods in the same order, with tensors of equal shapes.

    Args:
        neighbours: The workers of this node, with one door.
    """

    def __init__(self, neighbours: Neighbours):
        self._neighbours = neighbours
        self._slots = neighbours.memory.bytes.view(_NUM_SLOTS, -1)
        self._turn = 0

    @property
    def rank(self) -> int:
        """This worker's rank among those of its node."""
        return self._neighbours.place

    def gather(self, rows: Sequence[torch.Tensor] | torch.Tensor, mine: torch.Tensor) -> None:
        """Gather a tensor of each worker.

        Args:
            rows: Where they go, by rank, each of the shape of `mine`.
            mine: This worker's, (..., n); it may be its row already.

        Raises:
            RuntimeError: A worker is gone, or does not come within the time limit.
        """
        for part in self._turns(mine):
            slot = self._put(mine[..., part])
            for other in self._neighbours.others:
                rows[other][..., part].copy_(self._neighbours.same_of(other, slot))
        if rows[self.rank].data_ptr() != mine.data_ptr():
            rows[self.rank].copy_(mine)

    def scatter(self, total: torch.Tensor, parts: torch.Tensor, *, add: bool) -> None:
        """Sum up, in the order of the ranks, what each worker has for this one.

        Args:
            total: Where the sum goes, (..., n).
            parts: One for each worker, by rank: (k, ..., n).
            add: Whether to add to `total` instead of overwriting it.

        Raises:
            RuntimeError: A worker is gone, or does not come within the time limit.
        """
        for part in self._turns(parts):
            slot, target = self._put(parts[..., part]), total[..., part]
            addends = [
                self._neighbours.same_of(other, slot[self.rank]) for other in range(len(parts))
            ]
            if not add:
                torch.add(addends[0], addends[1], out=target)
            for addend in addends if add else addends[2:]:
                target.add_(addend)

    def limit(self, timeout_s: float) -> None:
        """Set the time limit of doors from now on."""
        self._neighbours.limit(timeout_s)

    def close(self) -> None:
        """Close the doors; whoever waits at one, here or elsewhere, fails at once."""
        self._neighbours.close()

    def _turns(self, values: torch.Tensor) -> list[slice]:
        """Cut the last dimension so that each cut of the values fits into a slot."""
        length = values.shape[-1]
        if not values.numel():
            return []
        fits = self._slots.shape[1] * length // values.nbytes
        assert fits, "a slot holds at least one number for each worker"
        return [slice(begin, begin + fits) for begin in range(0, length, fits)]

    def _put(self, values: torch.Tensor) -> torch.Tensor:
        """Put values where the others can read them, and wait until they have done so too."""
        slot = self._slots[self._turn][: values.nbytes].view(values.dtype).view(values.shape)
        self._turn = 1 - self._turn
        slot.copy_(values)
        self._neighbours.pass_door(0)
        return slot


def share_staging(group: dist.ProcessGroup, timeout_s: float) -> Staging | None:
    """Share memory with the workers of a node; all of them must call it.

    Args:
        group: A process group of exactly these, with gloo on the host.
        timeout_s: Time limit of doors.

    Returns:
        None, on all of them, where one can share none.
    """
    offer = Offer.of(_memory())
    names = _gather(offer.name if offer is not None else "", group)
    if offer is None:
        return None
    try:
        # Without everybody's name all know already that memory is shared by nobody.
        neighbours = all(names) and offer.meet(
            names,
            group.rank(),
            num_doors=1,
            timeout_s=timeout_s,
            all_agree=lambda is_ready: all(_gather(is_ready, group)),
        )
    finally:
        offer.close()
    return Staging(neighbours) if neighbours else None


def _memory() -> SharedMemory | None:
    try:
        return SharedMemory(_NUM_SLOTS * STAGING_SLOT_BYTES)
    except OSError:
        return None


def _gather(value: _Value, group: dist.ProcessGroup) -> list[_Value]:
    values = [value] * group.size()
    dist.all_gather_object(values, value, group=group)
    return values
