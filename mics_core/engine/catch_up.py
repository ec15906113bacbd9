"""What a member that is behind keeps until it holds the states of its peers.

See [Note: joining without holding anyone up] in `mics_core.engine.copying`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from mics_core.engine.copying import Incoming
from mics_core.engine.holding import Holding
from mics_core.engine.host_memory import free_host_bytes
from mics_core.errors import ReplicationError

__all__ = ["CatchUp", "KeptGradient", "most_kept_bytes"]

_AT_ONCE = 4
"""Kept gradients that are applied at the beginning of a step, while the peers compute."""
_LEAST_KEPT = 4
"""Gradients that a worker may keep however little memory is free."""
_OF_FREE_MEMORY = 0.25
"""All workers of the host together may keep so much: what is free now is not theirs alone."""


def most_kept_bytes(gradient_bytes: int, num_workers: int) -> int:
    """Return how much one of a host's workers may keep; then its peers wait for the copy.

    Args:
        gradient_bytes: Size of a gradient.
        num_workers: Workers of the host that keep some.
    """
    share = _OF_FREE_MEMORY * free_host_bytes() / num_workers
    return max(_LEAST_KEPT * gradient_bytes, int(share))


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
        most_kept_bytes: Bytes of gradients with which its peers begin to wait for the copy.
    """

    def __init__(self, incoming: Incoming, first_step: int, held: Holding, most_kept_bytes: int):
        self._incoming = incoming
        self._first_step = first_step
        self._held = held
        self._most_kept_bytes = most_kept_bytes
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

    def will_be_full(self, gradient_bytes: int) -> bool:
        """Return whether it must wait for the copy once it has kept a further gradient."""
        return self._kept_bytes + gradient_bytes >= self._most_kept_bytes and not self.has_received

    def must_wait(self, limit_s: float) -> bool:
        """Wait for the copy if no more gradients may be kept; return whether it must wait on."""
        if self._kept_bytes < self._most_kept_bytes:
            return False
        return not self._incoming.is_over_within(limit_s)

    def all_have_received(self) -> None:
        """Note that each worker of the partition group has its part of the copy."""
        self._all_have_received = True

    def take(self) -> list[KeptGradient]:
        """Put the copy in place if all have it; return what is to be applied now, in order.

        Raises:
            ReplicationError: A source of the copy was lost.
        """
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

    @property
    def _kept_bytes(self) -> int:
        return sum(kept.values.nbytes for kept in self._kept)
