"""Calls without a time limit, such as Ray's: each in a thread that can be left to itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from mics_core.ending import start_abandonable

__all__ = ["gist", "in_daemon_thread", "reclaim_signals"]

_Result = TypeVar("_Result")


def in_daemon_thread(work: Callable[[], _Result]) -> asyncio.Future[_Result]:
    """Run `work` in a daemon thread: unlike a pool's, a stuck one does not hold up the exit."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def deliver(result: _Result | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except SystemExit as error:
            failure = RuntimeError(f"Ray asked the process to exit ({error.code}).")
        except BaseException as error:
            failure = error  # type: ignore[assignment]
        # The loop may be closed by the time a call that was given up comes back.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, result, failure)

    start_abandonable(run, "mics-blocking-call")
    return future


def reclaim_signals() -> None:
    """Put this process's own signal handlers back in force.

    `ray.init` puts one of its own in front, which writes a stack trace on SIGTERM; `ray.shutdown`
    leaves the default, which kills the process on the spot. Python still knows the right ones.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)


def gist(error: BaseException) -> str:
    """Return the one line of Ray's words that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The Jobs API answers with whole stack traces, whose last line is the error.
    return lines[-1] if "Traceback" in lines[0] else lines[0]
