"""Finds out who is missing after a collective of a partition group broke.

gloo's error names an address at best, and only a lost worker's neighbours have one: the others wait
on in the collective. So each worker has a thread that waits for an alarm at the store of its world,
over a connection of its own. Whoever sees a collective break rings it; the threads of all who still
live answer, also where their workers wait. Who has not answered after a while is missing.
"""

from __future__ import annotations

from datetime import timedelta
from threading import Thread
from time import monotonic
from typing import Any

from torch._C._distributed_c10d import PrefixStore

__all__ = ["RollCall"]

_ALARM = "alarm"
_A_WHILE = timedelta(hours=1)


class RollCall:
    """One worker's end of the roll call of its partition group.

    Args:
        store: The store of the group's world (torch's stubs leave out that it can be cloned).
        name: Tells the group from others of the same world.
        rank: This worker's rank in the group.
        size: Workers of the group.
    """

    def __init__(self, store: Any, name: str, rank: int, size: int):
        self._rank = rank
        self._size = size
        prefix = f"roll-call/{name}"
        self._caller = PrefixStore(prefix, store.clone())
        self._listener = PrefixStore(prefix, store.clone())
        if size > 1:
            Thread(target=self._listen, name="roll-call", daemon=True).start()

    def missing_ranks(self, wait_s: float) -> list[int]:
        """Ring the alarm and return the ranks that do not answer within `wait_s` seconds."""
        deadline = monotonic() + wait_s
        missing: list[int] = []
        try:
            self._caller.set(_ALARM, "rung")
        except RuntimeError:
            return [0]  # the world's rank 0 keeps the store
        for rank in range(self._size):
            left = timedelta(seconds=max(0.05, deadline - monotonic()))
            try:
                self._caller.wait([f"here/{rank}"], left)
            except RuntimeError:
                missing.append(rank)
        return missing

    def _listen(self) -> None:
        while True:
            try:
                self._listener.wait([_ALARM], _A_WHILE)
                self._listener.set(f"here/{self._rank}", "here")
            except RuntimeError as error:
                if "timed out" in str(error).lower() or "timeout" in str(error).lower():
                    continue  # a quiet hour
            return  # answered, or the store is gone with its host
