"""What a member that is behind keeps until it holds the states of its peers.

See [Note: joining without holding anyone up] in `mics_core.engine.copying`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from mics_core.engine.copying import Incoming
from mics_core.engine.holding import Holding
from mics_core.errors import ReplicationError

__all__ = ["CatchUp", "KeptGradient"]

_AT_ONCE = 4
"""Kept gradients that are applied at the beginning of a step, while the peers compute."""
_MOST_KEPT = 64
"""Beyond so many the peers wait for the copy, lest the host's memory fill."""


@dataclass(frozen=True, slots=True)
class KeptGradient:
    """The reduced gradient of a step that could not be applied yet.

    Args:
        step: Number of the step.
        scale: What it is to be multiplied by.
        values: The gradient buffer, in the host's memory.
    """

    step: int
    scale: float
    values: torch.Tensor


class CatchUp:
    """One worker's way to the states of its peers.

    Args:
        incoming: The copy of the states that the kept gradients start from.
        first_step: The step that these states begin with.
        held: What the worker has, kept up to date: older states, or none, until the copy is in
            place ([Note: states are whole at any moment]).
    """

    def __init__(self, incoming: Incoming, first_step: int, held: Holding):
        self._incoming = incoming
        self._first_step = first_step
        self._held = held
        self._all_have_received = self._is_in_place = False
        self._kept: deque[KeptGradient] = deque()

    def keep(self, step: int, scale: float, flat: torch.Tensor) -> None:
        """Keep a committed step's gradient."""
        self._kept.append(KeptGradient(step, scale, flat.to("cpu", copy=True)))

    @property
    def has_received(self) -> bool:
        """Whether all of the copy is there; not if a source was lost, as `take` says."""
        try:
            return self._incoming.is_complete
        except ReplicationError:
            return False

    def all_have_received(self) -> None:
        """Note that each worker of the partition group has its part of the copy."""
        self._all_have_received = True

    def take(self) -> list[KeptGradient]:
        """Put the copy in place if all have it; return what is to be applied now, in order.

        Raises:
            ReplicationError: A source of the copy was lost.
        """
        if len(self._kept) >= _MOST_KEPT:
            self._incoming.wait()
        if not (self._incoming.is_complete and self._all_have_received):
            return []
        if not self._is_in_place:
            self._incoming.put_in_place()
            self._is_in_place = True
            self._held.step, self._held.has_state = self._first_step, True
        taken = [self._kept.popleft() for _ in range(min(_AT_ONCE, len(self._kept)))]
        self._held.step += len(taken)
        return taken

    @property
    def has_arrived(self) -> bool:
        """Whether the states are in place and nothing is left to apply."""
        return self._is_in_place and not self._kept
