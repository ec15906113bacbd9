"""Connections that can be closed at once, whoever else still holds them.

gloo closes a process group's connections when it destroys the group, and not before: `abort` and
`shutdown` leave them open, and whoever waits for this member waits on. So nobody but `Connections`
keeps a process group, and those that use one let go of it as soon as their call has ended.
"""

from __future__ import annotations

import sys
from threading import Thread
from time import monotonic, sleep
from traceback import clear_frames
from typing import Any

__all__ = ["Connections", "let_go"]

_LAST_USER_S = 0.5
"""Within it whoever broke off in a process group has let go of it."""
_LOOK_S = 0.001


class Connections:
    """A process group outside torch's world.

    Args:
        group: A `dist.ProcessGroupGloo` that nobody else keeps (torch's stubs leave out what it can
            do).
    """

    def __init__(self, group: Any):
        self._group = group

    @property
    def group(self) -> Any:
        """The process group; not to be kept beyond a call.

        Raises:
            RuntimeError: The connections are closed.
        """
        group = self._group
        if group is None:
            raise RuntimeError("The connections are closed.")
        return group

    def close(self) -> None:
        """Close the connections on a thread of its own; peers that still wait fail at once.

        A process group in which another thread still waits is only closed once that ends. And gloo
        takes 10 ms for each connection to destroy it, on the thread that lets go of it last: that
        must not be one that trains.
        """
        group, self._group = self._group, None
        if group is not None:
            Thread(target=_close, args=([group],), name="closing", daemon=True).start()


def let_go(error: BaseException) -> None:
    """Have the calls that an error ended let go of what they hold, such as a process group."""
    clear_frames(error.__traceback__)


def _close(groups: list[Any]) -> None:
    group, nobodys = groups.pop(), object()
    group.abort()
    group.shutdown()
    deadline = monotonic() + _LAST_USER_S
    # What only a variable here has, Python counts alike for both.
    while sys.getrefcount(group) > sys.getrefcount(nobodys) and monotonic() < deadline:
        sleep(_LOOK_S)
