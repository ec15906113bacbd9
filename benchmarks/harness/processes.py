"""Child processes that have torch, transformers and the engine already imported.

A world of twelve would import them twelve times, which on two cores is a minute. One server process
imports them once and forks the others; it starts no threads and uses no device, so that is safe.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

__all__ = ["process_context"]


def process_context() -> ForkServerContext:
    """The context that tests start their processes in."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.harness.preloaded"])
    return context
