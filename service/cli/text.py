"""Numbers, durations, sparklines and events as short text; pure, shared by all commands."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

from mics_core.spec.status import (
    CheckpointEvent,
    GenerationEvent,
    GenerationRecord,
    GroupEvent,
    JobEvent,
    RegroupEvent,
    ScaleEvent,
    StateEvent,
    StepEvent,
)

__all__ = [
    "clock",
    "count",
    "duration",
    "event_sentence",
    "loss_text",
    "number_list",
    "percent",
    "rate",
    "sparkline",
]

_BARS = "▁▂▃▄▅▆▇█"


def count(value: int) -> str:
    """Return a whole number with its thousands apart: `12,800`."""
    return f"{value:,}"


def rate(value: float | None) -> str:
    """Return tokens per second with three digits: `45.2k`; a dash if unknown."""
    if value is None or not math.isfinite(value):
        return "–"
    # Rounded before the unit is chosen, so that 999.7 becomes 1k and not 1000.
    value = float(f"{value:.3g}")
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def percent(share: float | None) -> str:
    """Return a share as a percentage: `97.3 %`; a dash if unknown."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def loss_text(value: float | None) -> str:
    """Return a loss with four decimals; a dash if unknown."""
    return "–" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `3 min 20 s`."""
    whole = max(0, round(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"


def clock(seconds: float) -> str:
    """Return a time since the epoch as the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def number_list(numbers: Sequence[int]) -> str:
    """Return numbers with their runs joined: `0–3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("–".join(str(end) for end in run) for run in runs)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return `values` as a row of bars, each the mean of its share, scaled from least to most."""
    known = [value for value in values if math.isfinite(value)]
    if not known or width < 1:
        return ""
    size = min(width, len(known))
    edges = [index * len(known) // size for index in range(size + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * size
    return "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)


def event_sentence(event: JobEvent) -> str:
    """Return what an event says, with its reason, in one line."""
    match event:
        case StateEvent():
            return f"job {event.state}: {event.reason}"
        case GroupEvent():
            return f"group {event.group_id} {event.state}: {event.reason}"
        case GenerationEvent():
            return _generation_sentence(event.generation)
        case ScaleEvent():
            return f"wanted {event.wanted}: {event.reason}"
        case CheckpointEvent():
            ending = f"failed: {event.error}" if event.error else "is complete"
            return f"checkpoint of step {event.step} {ending} ({event.path})"
        case RegroupEvent():
            return f"generation {event.generation} took: {event.in_words()}"
        case StepEvent():
            record = event.record
            return (
                f"step {record.step} loss {loss_text(record.loss)} tokens/s"
                f" {rate(record.tokens_per_s)} groups {record.num_groups}"
                f" generation {record.generation}"
            )


def _generation_sentence(generation: GenerationRecord) -> str:
    groups = number_list(sorted(generation.groups)) or "none"
    when = "announced" if generation.step is None else f"from step {generation.step}"
    return f"generation {generation.number} {when}, groups {groups}: {generation.reason}"
