"""Shows the results as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.network.goals import Goal
from benchmarks.network.measure import Measured

__all__ = ["show_goals", "show_results"]


def show_results(console: Console, title: str, results: Sequence[Measured]) -> None:
    """Print one row a system, and below what they had to say."""
    table = Table(title=title, title_justify="left")
    table.add_column("system", no_wrap=True)
    for heading in ("step s", "min", "max", "predicted", "MB out of a node", "peak RSS MB", "loss"):
        table.add_column(heading, justify="right")
    for result in results:
        if result.error is not None:
            table.add_row(result.system, "failed")
            continue
        row = result.as_row()
        table.add_row(
            result.system,
            f"{row['step_s_median']:.3f}",
            f"{row['step_s_min']:.3f}",
            f"{row['step_s_max']:.3f}",
            f"{row['predicted_step_s']:.3f}" if "predicted_step_s" in row else "",
            f"{row['bytes_out_per_node_per_step'] / 1e6:.1f}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
            f"{row['loss']:.5f}",
        )
    console.print(table)
    for result in results:
        if result.error is not None:
            console.print(f"{result.system} failed: {result.error}", style="bold red")
        elif result.description:
            console.print(f"{result.system}: {result.description}")


def show_goals(console: Console, goals: Sequence[Goal]) -> None:
    """Print one row a goal, and below why some were not measured."""
    table = Table(title="Goals, ratios of medians", title_justify="left")
    for heading in ("goal", "wanted", "measured", ""):
        table.add_column(heading, justify="left" if heading == "goal" else "right")
    for goal in goals:
        wanted = "–" if goal.wanted is None else f"{goal.wanted:g}"
        ratio = "–" if goal.ratio is None else f"{goal.ratio:.3f}"
        table.add_row(goal.name, wanted, ratio, _outcome(goal))
    console.print(table)
    for goal in goals:
        if goal.reason:
            style = "bold red" if goal.is_missed else None
            words = f"{goal.name}: not measured: {goal.reason}"
            console.print(words, style=style, markup=False)


def _outcome(goal: Goal) -> str:
    if goal.ratio is None:
        return "[red]not measured[/red]" if goal.is_missed else "not measured"
    if goal.wanted is None:
        return "no goal"
    return "[red]missed[/red]" if goal.is_missed else "reached"
