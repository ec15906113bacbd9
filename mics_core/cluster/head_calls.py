"""Calls to Ray's head, made on one thread of their own, in order.

Whoever asks Ray's head waits for its answer, and a head may be slow, or away for a while. The event
loop must not: it answers the members of the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["HeadCalls"]

logger = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class HeadCalls:
    """The thread, and what it is to do."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "mics-ray")

    async def ask(
        self, call: Callable[[], _Answer], undo: Callable[[_Answer], object] | None = None
    ) -> _Answer:
        """Return what a call returns; `undo` takes it if by then nobody waits for it any more."""
        asked = self._thread.submit(call)
        try:
            return await asyncio.shield(asyncio.wrap_future(asked))
        except asyncio.CancelledError:
            if undo is not None:
                self.later(lambda: undo(asked.result()))
            raise

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have a call made when those before it have been answered."""
        asked = self._thread.submit(call, *arguments)
        asked.add_done_callback(_note_failure)

    async def wait_for_all_before(self, timeout_s: float) -> None:
        """Wait until all calls up to now have been answered, or for so long."""
        all_before = asyncio.wrap_future(self._thread.submit(_nothing))
        await asyncio.wait([all_before], timeout=timeout_s)


def _nothing() -> None:
    pass


def _note_failure(asked: Future[object]) -> None:
    if (error := asked.exception()) is not None:
        logger.warning("Ray refused what was asked of it: %r", error)
