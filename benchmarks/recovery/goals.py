"""The goals of the comparison under fire: seconds and steps that a fault may cost us."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.harness.goals import Bound, Goal

__all__ = ["OURS", "goals_of"]

OURS = "mics-elastic"
_MEDIAN, _LONGEST, _EXTRA = "stall_s_median", "stall_s_max", "extra_step_ratio_median"
_WANTED = {
    "worker killed": {_MEDIAN: 0.5, _LONGEST: 2.0},
    "group killed": {_MEDIAN: 0.5, _LONGEST: 2.0},
    "node killed": {_MEDIAN: 2.0},
    "node added": {_EXTRA: 0.10},
    "group drained": {_EXTRA: 0.10},
}
_WORDS = {
    _MEDIAN: "stall in the median, s",
    _LONGEST: "longest stall, s",
    _EXTRA: "extra time of the members, steps",
}


def goals_of(rows: Sequence[Mapping[str, Any]], faults: Iterable[str]) -> list[Goal]:
    """Return the goals of our system, and that a loss stalls it less than every peer measured.

    Args:
        rows: Of the results' file; one with `error` is of a system that could not go on.
        faults: What was to be done; one without a row of ours was not measured.
    """
    return [goal for fault in faults for goal in _goals_of(rows, fault)]


def _goals_of(rows: Sequence[Mapping[str, Any]], fault: str) -> Iterator[Goal]:
    of_fault = {row["system"]: row for row in rows if row.get("fault") == fault}
    errors = {row["system"]: row["error"] for row in rows if "error" in row}
    ours = of_fault.get(OURS, {})
    reason = "" if ours else _why_missing(errors.get(OURS))
    for figure, wanted in _WANTED[fault].items():
        name = f"{fault}: {_WORDS[figure]}"
        yield Goal(name, wanted, ours.get(figure), reason, Bound.BELOW)
    if _MEDIAN not in _WANTED[fault]:
        return  # a peer's figures stand beside ours, and have no goal
    for peer in dict.fromkeys(row["system"] for row in rows if row["system"] != OURS):
        name = f"{fault}: {_WORDS[_MEDIAN]}, beside {peer}"
        theirs = of_fault.get(peer)
        if theirs is None:
            yield Goal(name, None, None, _why_missing(errors.get(peer)), Bound.BELOW)
        else:
            yield Goal(name, theirs[_MEDIAN], ours.get(_MEDIAN), reason, Bound.BELOW)


def _why_missing(error: str | None) -> str:
    return "it was not run" if error is None else f"it failed: {error.splitlines()[0]}"
