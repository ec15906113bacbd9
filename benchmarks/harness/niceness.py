"""The priority of processes that share a machine with others of a benchmark."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["LOWEST", "set_niceness"]

LOWEST = 19


def set_niceness(pid: int, niceness: int) -> None:
    """Set the niceness of all threads of a process, if it is there; to lower it needs root."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), niceness)
