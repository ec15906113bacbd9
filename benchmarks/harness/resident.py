"""Resident memory of this process: now, and its peak since the last reset."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

__all__ = ["peak_rss_bytes", "reset_peak", "rss_bytes"]


def rss_bytes() -> int:
    """Return the memory that is resident now."""
    return _status("VmRSS")


def peak_rss_bytes() -> int:
    """Return the most that was resident at once since `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Give freed memory back to the system and let the peak begin anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the high-water mark; see proc(5).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")
