"""Limits how often an address may present credentials that are not valid."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["FailedAttempts"]

_MOST_ADDRESSES = 10_000


class FailedAttempts:
    """Counts failures by address, over a sliding window.

    Args:
        limit: Failures after which an address has to wait.
        window_s: How long a failure counts.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        limit: int = 10,
        window_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._limit = limit
        self._window_s = window_s
        self._clock = clock
        # Oldest first and bounded: somebody with many addresses must not fill the memory.
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count a failure of `address`."""
        key = _network_of(address)
        times = [*self._recent(key), self._clock()][-self._limit :]
        self._failures[key] = times
        self._failures.move_to_end(key)
        while len(self._failures) > _MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def wait_s(self, address: str) -> float:
        """Return how long `address` has to wait before its next attempt; 0 if it need not."""
        times = self._recent(_network_of(address))
        if len(times) < self._limit:
            return 0.0
        return times[0] + self._window_s - self._clock()

    def _recent(self, key: str) -> list[float]:
        since = self._clock() - self._window_s
        return [moment for moment in self._failures.get(key, ()) if moment > since]


def _network_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the network that a subscriber gets as a whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
