"""Connections of a replication group that carry copies of model states beside its collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mics_core.comm.connections import Connections, let_go
from mics_core.errors import ReplicationError

__all__ = ["Copies"]


class Copies:
    """Sends and receives tensors of the host; used by one thread.

    Args:
        connections: Of all members of the replication group, by rank.
    """

    def __init__(self, connections: Connections):
        self._connections = connections

    def send(self, values: torch.Tensor, to: Sequence[int]) -> None:
        """Send a flat tensor to some members, to all at once.

        Raises:
            ReplicationError: A member was lost, or the connections are closed.
        """
        self._finish(lambda backend: [backend.send([values], rank, 0) for rank in to])

    def receive(self, values: Sequence[tuple[torch.Tensor, int]]) -> None:
        """Receive flat tensors, each from the member of its rank, all at once.

        Raises:
            ReplicationError: A member was lost, or the connections are closed.
        """
        self._finish(lambda backend: [backend.recv([value], rank, 0) for value, rank in values])

    def close(self) -> None:
        """Drop the connections; peers that still wait fail at once."""
        self._connections.close()

    def _finish(self, begin: Callable[[Any], list[Any]]) -> None:
        try:
            for work in begin(self._connections.group):
                work.wait()
        except RuntimeError as error:
            let_go(error)
            raise ReplicationError(f"The copy of the model states broke: {error}") from None
