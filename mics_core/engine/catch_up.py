"""What a member that is behind keeps until it holds the states of its peers.

See [Note: joining without holding anyone up] in `mics_core.engine.copying`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from mics_core.engine.copying import Incoming

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
    """

    def __init__(self, incoming: Incoming):
        self._incoming = incoming
        self._kept: deque[KeptGradient] = deque()

    def keep(self, step: int, scale: float, flat: torch.Tensor) -> None:
        """Keep a committed step's gradient."""
        self._kept.append(KeptGradient(step, scale, flat.to("cpu", copy=True)))

    def take(self) -> list[KeptGradient]:
        """Return what can be applied now, in order.

        Raises:
            ReplicationError: A source of the copy was lost.
        """
        if len(self._kept) >= _MOST_KEPT:
            self._incoming.wait()
        if not self._incoming.is_complete:
            return []
        return [self._kept.popleft() for _ in range(min(_AT_ONCE, len(self._kept)))]

    @property
    def has_arrived(self) -> bool:
        """Whether the states are there and nothing is left to apply."""
        return self._incoming.is_complete and not self._kept
