"""Calls that block for long in native code, and that may be given up meanwhile.

[Note: giving up a connection]
gloo connects every pair of members, and each end waits for the other up to its time limit, minutes
in earnest. If a member dies between its arrival at the store and its last connection, nothing tells
the others: only the next generation, which the supervisor announces at once, says that it is not
worth waiting. So whatever waits for peers before the first step runs on a thread of its own, which
is left to its time limit once a newer generation is known. What it may still connect is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

__all__ = ["GivenUpError", "first_line", "unless"]

_LOOK_S = 0.05

_Result = TypeVar("_Result")


class GivenUpError(Exception):
    """A call was not worth waiting for any more."""


def unless(
    pointless: Callable[[], bool], job: Callable[[Event], _Result], *, grace_s: float = 0.0
) -> _Result:
    """Call a function on a thread of its own; see [Note: giving up a connection].

    Args:
        pointless: Whether the result is not wanted any more; asked again and again, by the caller.
        job: The function; its argument is set once it has been given up.
        grace_s: How long a pointless call may still take: it may be about to succeed.

    Returns:
        The function's result.

    Raises:
        GivenUpError: It was pointless before it ended.
        Exception: Whatever the function raises.
    """
    future: Future[_Result] = Future()
    given_up = Event()

    def run() -> None:
        try:
            future.set_result(job(given_up))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="connecting", daemon=True).start()
    since: float | None = None
    while True:
        try:
            return future.result(_LOOK_S)
        except TimeoutError:
            if future.done():
                raise  # it is the function's own
        if not pointless():
            continue
        since = monotonic() if since is None else since
        if monotonic() - since >= grace_s:
            given_up.set()
            raise GivenUpError


def first_line(error: BaseException) -> str:
    """Return what native code says first; a stack often follows."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
