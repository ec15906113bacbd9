"""Connects a command to a Ray cluster in bounded time, or says why it cannot."""

from __future__ import annotations

import logging
import queue
import socket
from urllib.parse import urlsplit

import ray

from mics_core.cluster.names import NAMESPACE
from mics_core.ending import start_abandonable
from mics_core.errors import ClusterError

__all__ = ["connect", "first_line", "knock"]

_CONNECT_S = 30.0
_KNOCK_S = 5.0


def connect(address: str = "auto", timeout_s: float = _CONNECT_S) -> None:
    """Connect this process to a Ray cluster; does nothing if it is connected.

    Raises:
        ClusterError: No cluster answers at the address in time.
    """
    if ray.is_initialized():
        return
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            knock(address)
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,  # it warns of the missing main thread
            )
            outcome.put(None)
        except BaseException as error:  # Ray also asks to exit where nobody answers
            outcome.put(error)

    # `ray.init` has no time limit.
    start_abandonable(attempt, "mics-ray-connect")
    try:
        error = outcome.get(timeout=timeout_s)
    except queue.Empty:
        reason = f"nobody answered in {timeout_s:g} s"
    else:
        if error is None:
            return
        reason = first_line(error)
    raise ClusterError(
        f"No Ray cluster can be reached at {address!r}: {reason}",
        remedy="Check it with `ray status`, or name another with --address.",
    )


def first_line(error: BaseException) -> str:
    """Return the line of an error of Ray that says what is wrong; traces follow it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def knock(address: str) -> None:
    """Find out in seconds that nobody listens: `ray.init` would try again for a minute or more.

    Raises:
        OSError: Nobody does.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        with socket.create_connection((parts.hostname, parts.port), timeout=_KNOCK_S):
            pass
