"""What the C library keeps of freed memory between two steps.

[Note: freed memory]
A step on CPUs allocates its activations and gradients anew and frees them. By default glibc gives
what lies at the end of an arena back to the system as soon as it is free, and gets it again, page
by page and cleared, a moment later. How much that is depends on where threads and their arenas came
to lie as the process started, so it is also why equal workers differ (`docs/log.md`, "Pages that
every step gives back"). Here what a step frees stays for the next one. Blocks of 32 MiB and more
are mapped one by one and given back at once, as before: they would leave holes that nothing else
fits. An arena asks for 64 MiB at a time: of addresses, which are no memory until they are used.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

__all__ = ["keep_freed_memory"]

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_LARGEST_KEPT_BYTES = 32 << 20
"""What glibc's own, moving threshold may rise to."""
_HEAP_BYTES = 64 << 20
"""An arena of a thread grows by heaps of this size and drops one that is empty, but for so much."""
_NEVER = 2**31 - 1


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have this process keep what it frees for what it allocates next; see [Note: freed memory].

    For workers that train on CPUs. A user's own setting of glibc's allocator is left alone.

    Args:
        environment: Where such a setting would be.

    Returns:
        Whether glibc was told so: not where there is no glibc, or the user has set it.
    """
    is_set = any(name.startswith("MALLOC_") for name in environment)
    if is_set or "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        and mallopt(_M_TRIM_THRESHOLD, _NEVER)
        and mallopt(_M_TOP_PAD, _HEAP_BYTES)
    )
