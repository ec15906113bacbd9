"""The key-value store that workers meet at."""

from __future__ import annotations

from torch._C._distributed_c10d import TCPStore

__all__ = ["LIBUV_VARIABLE", "host_store"]

LIBUV_VARIABLE = "USE_LIBUV"
"""Names the environment variable that says which server torch's own rendezvous starts."""


def host_store(host: str) -> TCPStore:
    """Host a store at a free port, for as long as the returned object lives.

    Its server is the one without libuv. Where Linux is emulated (gVisor), the other leaves one in
    seven connections unanswered for five seconds, and a generation would wait for that.
    """
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, use_libuv=False)
