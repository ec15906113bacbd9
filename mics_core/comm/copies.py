"""Connections of a replication group that carry copies of model states beside its collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

import torch

from mics_core.errors import ReplicationError

__all__ = ["Copies", "close_backend"]


class Copies:
    """Sends and receives tensors of the host; used by one thread.

    Args:
        backend: A `dist.ProcessGroupGloo` of all members of the replication group, by rank (torch's
            stubs leave out what it can do).
    """

    def __init__(self, backend: Any):
        self._backend = backend
        self._is_open = True

    def send(self, values: torch.Tensor, to: Sequence[int]) -> None:
        """Send a flat tensor to some members, to all at once.

        Raises:
            ReplicationError: A member was lost, or the connections are closed.
        """
        self._finish(lambda: [self._backend.send([values], rank, 0) for rank in to])

    def receive(self, values: Sequence[tuple[torch.Tensor, int]]) -> None:
        """Receive flat tensors, each from the member of its rank, all at once.

        Raises:
            ReplicationError: A member was lost, or the connections are closed.
        """
        self._finish(lambda: [self._backend.recv([value], rank, 0) for value, rank in values])

    def close(self) -> None:
        """Drop the connections; peers that still wait fail at once."""
        if self._is_open:
            self._is_open = False
            close_backend(self._backend)

    def _finish(self, begin: Callable[[], list[Any]]) -> None:
        if not self._is_open:
            raise ReplicationError("The copy of the model states was given up.")
        try:
            for work in begin():
                work.wait()
        except RuntimeError as error:
            raise ReplicationError(f"The copy of the model states broke: {error}") from None


def close_backend(backend: Any) -> None:
    """Close a process group on a thread of its own.

    One in which another thread still waits is only closed once that ends.
    """
    Thread(target=_close, args=(backend,), name="closing", daemon=True).start()


def _close(backend: Any) -> None:
    backend.abort()
    backend.shutdown()
