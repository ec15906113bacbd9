"""What a worker holds of the model states, which decides who copies from whom."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Holding"]


@dataclass(slots=True)
class Holding:
    """What a worker has: the same on all workers of its partition group.

    Args:
        step: The next step.
        has_state: Whether its states are those that this step begins with.
    """

    step: int
    has_state: bool
