"""Gathering at the store of a generation, for as long as it takes, and telling who has not come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Event
from time import monotonic, sleep

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from mics_core.comm.store import KeyTakenError, MeetingStore
from mics_core.elastic.plan import StoreAddress

__all__ = ["ANSWER", "Missing", "gather", "nobody_listens", "reach"]

ANSWER = timedelta(seconds=5)
"""How long the host of a store at which others gather may take to answer before it is missed. It
runs in a worker that trains, whose own code may hold Python's lock for a while."""

Missing = Callable[[tuple[int, ...]], None]
"""Is told, now and then and from any thread, the ranks of those that are waited for."""

_RETRY_S = 0.05
_SLICE = timedelta(milliseconds=250)
_TELL_AFTER_S = 2.0
_HOST = (0,)


def nobody_listens(missing: tuple[int, ...]) -> None:
    """Take no notice of who is missing."""


def reach(
    address: StoreAddress, given_up: Event, timeout: timedelta, missing: Missing
) -> MeetingStore:
    """Connect to a store; its host, a worker of rank 0, may have died.

    Args:
        address: The store's.
        given_up: Set when the store is not wanted any more.
        timeout: How long to try, and how long others may wait for keys later.
        missing: Is told that it is the host that is waited for.

    Raises:
        RuntimeError: Nobody listens there.
    """
    begin = monotonic()
    reminder = _Reminder()
    while True:
        try:
            return MeetingStore(address.host, address.port, timeout)
        except RuntimeError as error:
            if given_up.is_set() or monotonic() > begin + timeout.total_seconds():
                raise RuntimeError(f"nobody listens: {error}") from None
            if reminder.is_due():
                missing(_HOST)
            sleep(_RETRY_S)


def gather(
    store: Store, rank: int, size: int, word: str, given_up: Event, missing: Missing
) -> None:
    """Wait for as long as it takes until all ranks are at the store; all must call it.

    Args:
        store: Where they meet, with `ANSWER`; its host is of rank 0.
        rank: The caller's.
        size: How many they are.
        word: What the caller says of itself; it becomes the value of its rank's key.
        given_up: Set when nobody is waited for any more.
        missing: Is told who has not come.
    """
    keys = [str(each) for each in range(size)]
    reminder = _Reminder()
    is_here = False
    while not given_up.is_set():
        try:
            if not is_here:
                store.set(str(rank), word)
                is_here = True
            store.wait(keys, _SLICE)
            return
        except KeyTakenError:
            raise
        except dist.DistStoreError:
            pass  # not all are here, or the store does not answer
        if reminder.is_due():
            absent = _absent(store, keys) if is_here else _HOST
            if absent:  # the last may have come just now
                missing(absent)


def _absent(store: Store, keys: list[str]) -> tuple[int, ...]:
    """Return who has not come, as far as the store says so: a living one answers at once."""
    try:
        return tuple(rank for rank, key in enumerate(keys) if not store.check([key]))
    except dist.DistStoreError:
        return _HOST


class _Reminder:
    """Says when it is time to tell again who is missing."""

    def __init__(self) -> None:
        self._due = monotonic() + _TELL_AFTER_S

    def is_due(self) -> bool:
        now = monotonic()
        if now < self._due:
            return False
        self._due = now + _TELL_AFTER_S
        return True
