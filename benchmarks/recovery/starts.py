"""A start that takes as little processor as can be from those who train.

[Note: whose processors a start takes]
All simulated nodes share one machine. The processes of an added node import, build and warm up on
processors that would be the new machine's elsewhere and are the members' here. So they begin at the
lowest priority and get the usual one once their group is ready, before it is announced. To raise a
priority again needs root; without it they start as the others do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from benchmarks.harness.niceness import LOWEST, set_niceness

__all__ = ["given_way", "take_part"]


@contextmanager
def given_way() -> Iterator[None]:
    """Have the processes that this thread starts meanwhile begin at the lowest priority."""
    if os.geteuid() != 0:
        yield
        return
    usual = os.getpriority(os.PRIO_PROCESS, 0)  # of this thread alone, on Linux
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


def take_part(pids: Iterable[int]) -> None:
    """Give processes that began in `given_way` the usual priority; those that are gone are left."""
    if os.geteuid() != 0:
        return
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    for pid in pids:
        set_niceness(pid, usual)
