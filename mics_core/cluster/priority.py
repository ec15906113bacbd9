"""The priority of processes that have nothing left to train."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["step_aside"]

_LOWEST = 19
_THREADS = Path("/proc/self/task")


def step_aside() -> None:
    """Give all threads of this process the lowest priority, for good.

    A worker that has left takes half a second of a processor to end. Where it shares the machine
    with others of its job, they are in the middle of a step.
    """
    with suppress(OSError):  # no Linux
        for thread in list(_THREADS.iterdir()):
            with suppress(OSError):  # the thread has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, int(thread.name), _LOWEST)
