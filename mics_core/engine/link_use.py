"""When the second hop uses the links between nodes: copies of model states leave them to it.

A copy has time, the second hop holds up a step. Where both are under way on one link they would
share it, and the members' steps would be as much longer as the copy takes of them.
"""

from __future__ import annotations

import time
from threading import Condition

__all__ = ["LinkUse"]

_PATIENCE = 1.5
"""One that takes longer than the one before by this factor waits for something else than links."""
_FIRST_S = 0.1


class LinkUse:
    """The trainer says when the second hop begins and ends; whoever copies waits meanwhile.

    It begins with this worker's and ends with the last of its partition group's, whose links are
    the same.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._began: float | None = None
        self._usual_s = _FIRST_S

    def begin(self) -> None:
        """Note that a second hop begins."""
        with self._changed:
            self._began = time.monotonic()

    def end(self) -> None:
        """Note that it has ended."""
        with self._changed:
            if self._began is not None:
                self._usual_s = time.monotonic() - self._began
            self._began = None
            self._changed.notify_all()

    def wait_until_free(self) -> None:
        """Wait for the end of the second hop that is under way, but not much longer than usual.

        One that waits for a member which is slow, or gone, leaves the links idle: the copy goes on.
        """
        with self._changed:
            while self._began is not None:
                left_s = self._began + _PATIENCE * self._usual_s - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)
