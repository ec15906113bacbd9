"""How much of the host's memory is free, for those who can use more or less of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_host_bytes"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return the bytes that this host, or the container that this process is in, still has to give.

    What the kernel can reclaim, such as files that it keeps in memory, counts as free. 0 where
    nothing is known.

    Args:
        meminfo: The kernel's account of the host.
        cgroup: The folder of the container's limits (version 2).
    """
    free = _fields(meminfo).get("MemAvailable:", 0) << 10
    limit = _first_word(cgroup / "memory.max")
    if limit.isdigit():  # the word "max" without one
        reclaimable = _fields(cgroup / "memory.stat").get("inactive_file", 0)
        used = int(_first_word(cgroup / "memory.current") or 0) - reclaimable
        free = min(free, int(limit) - used)
    return max(0, free)


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file whose lines are a name and a number."""
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _first_word(path: Path) -> str:
    return next(iter(_text(path).split()), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
