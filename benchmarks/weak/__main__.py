"""Measures weak scaling over shaped links: `python -m benchmarks.weak`.

A partition group of two on each node, from two nodes to eight; each group always has the same work.
Efficiency is the throughput of a group relative to its throughput among the fewest groups, over the
same link. Over all links but the first only our engine runs, among the fewest and the most groups,
which keeps the whole below twelve minutes.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.nodes import EmulatedNetwork, reason_to_skip
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.network.layouts import Layout
from benchmarks.network.measure import (
    Factories,
    Measured,
    Plan,
    largest_loss_difference,
    measure,
)
from benchmarks.network.report import show_results

PARTITION_SIZE = 2
NUM_MICRO_BATCHES = 4
SEQUENCE_LENGTH = 4
LOSS_TOLERANCE = 1e-4
GOAL = 0.99
OURS = f"mics p={PARTITION_SIZE}"
TUNED = f"{OURS} bucket_mib=0.5"
"""A layer's shard is half a MiB: buckets of the usual size leave after the last layer."""


@dataclass(frozen=True, slots=True)
class Run:
    """Some systems among a number of partition groups over one link."""

    link_mbit: float
    num_groups: int
    systems: tuple[str, ...]


def main() -> int:
    """Run the benchmark; return 1 if a loss differs or our engine failed, else 0."""
    options = _parse()
    console = build_console()
    if reason := reason_to_skip():
        console.print(f"skipped: {reason}")
        return 0
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = emulated_model(options.width, options.layers, options.forward_s)
    results: dict[Run, list[Measured]] = {}
    sound = True
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as folder:
        for run in runs_of(options.links, options.groups, options.systems):
            measured = _measure(console, options, model, run, Path(folder))
            title = f"{run.num_groups} partition groups, links of {run.link_mbit:g} Mbit/s"
            show_results(console, title, measured)
            difference, words = largest_loss_difference(measured)
            console.print(f"Losses: at most {difference:.1e} apart ({words}).")
            failed = any(r.error is not None for r in measured if r.system.startswith("mics"))
            sound &= difference <= LOSS_TOLERANCE and not failed
            results[run] = measured
    rows = rows_of(results)
    write_results(options.output, rows, emulated=model)
    for row in rows:
        console.print(
            f"{row['system']}, {row['groups']} groups, {row['link_mbit']:g} Mbit/s:"
            f" {row['step_s_median']:.3f} s,"
            f" efficiency {row['efficiency']:.4f}"
            + (f" (goal {GOAL})" if row["system"].startswith("mics") else "")
        )
    console.print(f"written to {options.output}")
    return int(not sound)


def _measure(
    console: Console,
    options: argparse.Namespace,
    model: dict[str, Any],
    run: Run,
    folder: Path,
) -> list[Measured]:
    layout = Layout(run.num_groups, PARTITION_SIZE)
    spec = training_job(
        write_tokens(folder),
        model,
        global_batch_size=layout.world_size * NUM_MICRO_BATCHES,
        sequence_length=SEQUENCE_LENGTH,
    )
    with ExitStack() as stack:
        network = stack.enter_context(EmulatedNetwork(run.num_groups))
        network.shape(run.link_mbit)
        return measure(
            Factories(network, folder, stack),
            spec,
            run.systems,
            layout,
            run.link_mbit,
            Plan(options.turns, num_warm_up=1, num_steps=options.steps),
            lambda what: console.print(
                f"{run.num_groups} groups, {run.link_mbit:g} Mbit/s: {what}"
            ),
        )


def runs_of(links: Sequence[float], groups: Sequence[int], systems: Sequence[str]) -> list[Run]:
    """Return what is run: all over the first link, our engine at the ends over others."""
    runs = [Run(links[0], number, tuple(systems)) for number in groups]
    ours = tuple(system for system in systems if system.startswith("mics"))
    for link_mbit in links[1:]:
        runs += [Run(link_mbit, number, ours) for number in sorted({groups[0], groups[-1]})]
    return runs


def rows_of(results: Mapping[Run, Sequence[Measured]]) -> list[dict[str, Any]]:
    """Return the rows of the results' file."""
    rows: list[dict[str, Any]] = []
    base: dict[tuple[str, float], float] = {}
    for run, measured in results.items():
        for result in measured:
            if result.error is not None:
                continue
            # The work of a group is the same among all numbers of groups.
            first_s = base.setdefault((result.system, run.link_mbit), result.step_s)
            rows.append(
                {
                    "system": result.system,
                    "groups": run.num_groups,
                    "link_mbit": run.link_mbit,
                    "step_s_median": result.step_s,
                    "efficiency": first_s / result.step_s,
                }
            )
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak", description=__doc__)
    add = parser.add_argument
    add("--groups", type=_numbers, default=[2, 4, 8], help="partition groups, such as 2,4,8")
    add("--systems", type=_names, default=[OURS, TUNED, "fsdp2 full"])
    add("--links", type=_links, default=[1000.0, 200.0], help="Mbit/s of each node's link")
    add("--turns", type=int, default=1, help="turns of each system")
    add("--steps", type=int, default=2, help="measured steps of a turn")
    add("--forward-s", type=float, default=0.3, help="emulated forward of a layer; backward twice")
    add("--layers", type=int, default=4, help="layers")
    add("--width", type=int, default=512, help="width of a layer; its square is its parameters")
    add("--output", type=Path, default=RESULTS / "weak.json", help="where to write the results")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _links(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
