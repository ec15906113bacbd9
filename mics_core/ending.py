"""How a process ends that has called into native code which may never come back.

Calls of Ray and of storage have no time limits, so they run in daemon threads that can be left to
themselves. Python's end leaves such a thread where it is, and then destroys the objects of the
C++ libraries that it still uses: the process ends by SIGSEGV or SIGABRT instead of its exit status.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn
from weakref import WeakSet

__all__ = ["end_at_once", "end_process", "start_abandonable"]

_started: WeakSet[threading.Thread] = WeakSet()


def start_abandonable(work: Callable[[], None], name: str) -> None:
    """Run `work` in a daemon thread, which a stuck call does not keep from being left to itself."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    _started.add(thread)
    thread.start()


def end_process(status: int) -> NoReturn:
    """End the process as `sys.exit` does, or at once where a thread was left to itself."""
    if any(thread.is_alive() for thread in list(_started)):
        end_at_once(status)
    sys.exit(status)


def end_at_once(status: int) -> NoReturn:
    """End the process without destructors and exit handlers, all that was written flushed."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
