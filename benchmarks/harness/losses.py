"""How far the losses of two runs are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["largest_difference"]


def largest_difference(expected: Sequence[float], losses: Sequence[float]) -> float:
    """Return the largest relative difference of any step's losses; NaN if one is no number.

    Raises:
        ValueError: One run has more steps than the other.
    """
    differences = [abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)
