"""Shows the results as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.network.measure import Measured

__all__ = ["show_results"]


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
