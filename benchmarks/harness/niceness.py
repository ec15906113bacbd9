"""The priority of processes that share a machine with others of a benchmark."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["LOWEST", "set_idle", "set_niceness"]

LOWEST = 19


def set_niceness(pid: int, niceness: int) -> None:
    """Set the niceness of all threads of a process, if it is there; to lower it needs root."""
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, niceness)


def set_idle(pid: int, *, is_idle: bool) -> None:
    """Have all threads of a process run only while others do not, or as others; the way back needs
    root.

    A thread of the lowest priority runs on to the end of its slice where another one wakes up; one
    that is idle makes room at once.
    """
    policy = os.SCHED_IDLE if is_idle else os.SCHED_OTHER
    for thread in _threads(pid):
        with suppress(ProcessLookupError):
            os.sched_setscheduler(thread, policy, os.sched_param(0))


def _threads(pid: int) -> list[int]:
    try:
        return [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
