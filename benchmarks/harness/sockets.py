"""Who listens where, so that one can see that what has ended left no port open.

A listening socket is known by its inode: it stays the same when another process inherits it, and
nobody else's socket has it, so what others open meanwhile does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["listeners", "listeners_of"]

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENS = "0A"
_SOCKET = "socket:["


def listeners() -> dict[str, int]:
    """Return the port of every listening TCP socket of this network namespace, by inode."""
    found = {}
    for table in _TABLES:
        with suppress(FileNotFoundError):  # without IPv6
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                if state == _LISTENS:
                    found[inode] = int(local.rpartition(":")[2], 16)
    return found


def listeners_of(pids: Iterable[int]) -> dict[str, str]:
    """Return the listening sockets that some processes hold, by inode, and who listens where."""
    owners = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # it was closed since
                    target = str(descriptor.readlink())
                    if target.startswith(_SOCKET):
                        owners[target.removeprefix(_SOCKET).rstrip("]")] = pid
    ports = listeners()
    return {
        inode: f"port {ports[inode]} of process {pid}"
        for inode, pid in owners.items()
        if inode in ports
    }
