"""Numbers as people read them, in the planner's sentences."""

from __future__ import annotations

__all__ = ["amount", "percent", "seconds"]


def amount(num_bytes: float) -> str:
    """Return bytes with three significant digits, in the largest unit that they fill."""
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        value = num_bytes / 2**exponent
        if value >= 1:
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def seconds(value: float) -> str:
    """Return a duration with three significant digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            scaled = value * factor
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage, with one digit below ten."""
    value = 100 * fraction
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %"
