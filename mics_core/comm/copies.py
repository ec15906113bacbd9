"""Connections of a replication group that carry copies of model states beside its collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread
from time import sleep
from typing import Any

import torch

from mics_core.errors import ReplicationError

__all__ = ["Copies", "close_backend"]

_LAST_HOLDER_S = 0.5
"""Within it whoever has closed a process group, or broke off in it, has let go of it."""


class Copies:
    """Sends and receives tensors of the host; used by one thread.

    Args:
        backend: A `dist.ProcessGroupGloo` of all members of the replication group, by rank (torch's
            stubs leave out what it can do).
    """

    def __init__(self, backend: Any):
        self._backend = backend

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
        backend, self._backend = self._backend, None
        if backend is not None:
            close_backend(backend)

    def _finish(self, begin: Callable[[Any], list[Any]]) -> None:
        backend = self._backend
        if backend is None:
            raise ReplicationError("The copy of the model states was given up.")
        try:
            for work in begin(backend):
                work.wait()
        except RuntimeError as error:
            raise ReplicationError(f"The copy of the model states broke: {error}") from None


def close_backend(backend: Any) -> None:
    """Close a process group on a thread of its own; the caller must hold it no longer.

    One in which another thread still waits is only closed once that ends. And gloo takes 10 ms for
    each connection to destroy it, on the thread that lets go of it last: see to it that this is
    not one that trains.
    """
    Thread(target=_close, args=(backend,), name="closing", daemon=True).start()


def _close(backend: Any) -> None:
    backend.abort()
    backend.shutdown()
    sleep(_LAST_HOLDER_S)
