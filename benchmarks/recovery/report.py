"""The outcomes of all systems as rows, and the rows as a table."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.recovery.outcome import Outcome

__all__ = ["build_row", "build_table"]


def build_row(system: str, fault: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Sum up what one fault cost one system.

    Args:
        system: Its name.
        fault: What was done to it.
        outcomes: At least one.
    """
    stalls = [outcome.stall_s for outcome in outcomes]
    row: dict[str, Any] = {
        "system": system,
        "fault": fault,
        "repetitions": len(outcomes),
        "stall_s_median": median(stalls),
        "stall_s_max": max(stalls),
        "steps_redone": max(outcome.steps_redone for outcome in outcomes),
        "extra_step_ratio_median": median(outcome.extra_step_ratio for outcome in outcomes),
    }
    with_capacity = [o.with_capacity_ratio for o in outcomes if o.with_capacity_ratio is not None]
    if with_capacity:
        row["extra_with_capacity_ratio_median"] = median(with_capacity)
    until = [o.until_contribution_s for o in outcomes if o.until_contribution_s is not None]
    return row | ({"until_contribution_s_median": median(until)} if until else {})


def build_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Show the rows; a system that failed has its reason in place of figures."""
    table = Table(title="What a fault costs the survivors", title_justify="left")
    for heading in ("system", "fault", "times"):
        table.add_column(heading)
    for heading in ("stall s", "max s", "steps redone", "extra step", "until part s"):
        table.add_column(heading, justify="right")
    for row in rows:
        if "error" in row:
            table.add_row(row["system"], row["error"].splitlines()[0])
            continue
        until = row.get("until_contribution_s_median")
        table.add_row(
            row["system"],
            row["fault"],
            str(row["repetitions"]),
            f"{row['stall_s_median']:.2f}",
            f"{row['stall_s_max']:.2f}",
            str(row["steps_redone"]),
            f"{100 * row['extra_step_ratio_median']:.0f} %",
            "" if until is None else f"{until:.1f}",
        )
    return table
