"""What a member that is behind keeps until it holds the states of its peers.

See [Note: joining without holding anyone up] in `mics_core.engine.copying`.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future
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
        arrival: Done when the values are there; none if they were from the beginning.
    """

    step: int
    scale: float
    values: torch.Tensor
    arrival: Future[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether the values are there.

        Raises:
            ReplicationError: Who was to send them was lost.
        """
        if self.arrival is not None and not self.arrival.done():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        """Wait until the values are there.

        Raises:
            ReplicationError: Who was to send them was lost.
        """
        if self.arrival is not None:
            self.arrival.result()


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

    def expect(self, step: int, flat: torch.Tensor) -> None:
        """Keep a committed step's gradient that its peers hand on, ready to be applied.

        Args:
            step: Number of the step.
            flat: A gradient buffer of that size and type.
        """
        values = torch.empty_like(flat, device="cpu")
        self._kept.append(KeptGradient(step, 1.0, values, self._incoming.expect(values)))

    def take(self) -> list[KeptGradient]:
        """Return what can be applied now, in order, but not more than a few.

        Raises:
            ReplicationError: A source of the copy was lost.
        """
        if len(self._kept) >= _MOST_KEPT:
            self._incoming.wait()
            self._kept[0].wait()
        taken: list[KeptGradient] = []
        if not self._incoming.is_complete:
            return taken
        while self._kept and len(taken) < _AT_ONCE and self._kept[0].is_there:
            taken.append(self._kept.popleft())
        return taken

    @property
    def num_missing(self) -> float:
        """Gradients to come before all can be applied at once; infinite without the states.

        Raises:
            ReplicationError: A source of the copy was lost.
        """
        if not self._incoming.is_complete:
            return math.inf
        missing = sum(not kept.is_there for kept in self._kept)
        # One more follows.
        return missing or max(0, len(self._kept) + 1 - _AT_ONCE)
