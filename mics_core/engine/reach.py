"""Whom a step's second hop reaches; see [Note: joining without holding anyone up] in `copying`."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Reach"]


class Reach(Enum):
    """Who takes part in the all-reduce of the gradient; the same on all members."""

    ALL = auto()
    """All members, who all have micro-batches."""
    WITH_LISTENERS = auto()
    """All members; those that are behind have a gradient of zero."""
    WITHOUT_LISTENERS = auto()
    """Those that hold the states alone; the others get the gradient from them later."""

    @property
    def gathers_late(self) -> bool:
        """Whether the summaries are gathered after the all-reduce instead of beside it.

        They then hold what is only known by then: the gradient's norm, for those who do not get
        the gradient, and whether those who are behind hold the states. And who is behind takes a
        step for committed only after the others have summed up its gradient.
        """
        return self is not Reach.ALL
