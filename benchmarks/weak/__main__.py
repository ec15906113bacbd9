"""Measures weak scaling over shaped links: `python -m benchmarks.weak`.

A partition group of two on each node, from two nodes to eight; each group always has the same work.
Efficiency is the throughput of a group relative to its throughput among the fewest groups.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
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
OURS = f"mics p={PARTITION_SIZE} bucket_mib=0.5"
"""A layer's shard is half a MiB: buckets of the usual size would leave after the last layer."""


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
    results: dict[int, list[Measured]] = {}
    sound = True
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as folder:
        for num_groups in options.groups:
            measured = _measure(console, options, model, num_groups, Path(folder))
            show_results(console, f"{num_groups} partition groups", measured)
            difference, words = largest_loss_difference(measured)
            console.print(f"Losses: at most {difference:.1e} apart ({words}).")
            failed = any(r.error is not None for r in measured if r.system.startswith("mics"))
            sound &= difference <= LOSS_TOLERANCE and not failed
            results[num_groups] = measured
    rows = _rows(results)
    write_results(options.output, rows, link_mbit=options.link, emulated=model)
    for row in rows:
        console.print(
            f"{row['system']}, {row['groups']} groups: {row['step_s_median']:.3f} s,"
            f" efficiency {row['efficiency']:.4f}"
            + (f" (goal {GOAL})" if row["system"].startswith("mics") else "")
        )
    console.print(f"written to {options.output}")
    return int(not sound)


def _measure(
    console: Console,
    options: argparse.Namespace,
    model: dict[str, Any],
    num_groups: int,
    folder: Path,
) -> list[Measured]:
    layout = Layout(num_groups, PARTITION_SIZE)
    spec = training_job(
        write_tokens(folder),
        model,
        global_batch_size=layout.world_size * NUM_MICRO_BATCHES,
        sequence_length=SEQUENCE_LENGTH,
    )
    with ExitStack() as stack:
        network = stack.enter_context(EmulatedNetwork(num_groups))
        network.shape(options.link)
        return measure(
            Factories(network, folder, stack),
            spec,
            options.systems,
            layout,
            options.link,
            Plan(options.turns, num_warm_up=1, num_steps=options.steps),
            lambda what: console.print(f"{num_groups} groups: {what}"),
        )


def _rows(results: dict[int, list[Measured]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    base: dict[str, float] = {}
    for num_groups, measured in results.items():
        for result in measured:
            if result.error is not None:
                continue
            # The work of a group is the same among all numbers of groups.
            efficiency = base.setdefault(result.system, result.step_s) / result.step_s
            rows.append(
                {
                    "system": result.system,
                    "groups": num_groups,
                    "step_s_median": result.step_s,
                    "efficiency": efficiency,
                }
            )
    return rows


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak", description=__doc__)
    add = parser.add_argument
    add("--groups", type=_numbers, default=[2, 4, 8], help="partition groups, such as 2,4,8")
    add("--systems", type=_names, default=[OURS, "fsdp2 full"])
    add("--link", type=float, default=1000.0, help="Mbit/s of each node's link")
    add("--turns", type=int, default=2, help="turns of each system")
    add("--steps", type=int, default=2, help="measured steps of a turn")
    add("--forward-s", type=float, default=0.3, help="emulated forward of a layer; backward twice")
    add("--layers", type=int, default=4, help="layers")
    add("--width", type=int, default=512, help="width of a layer; its square is its parameters")
    add("--output", type=Path, default=RESULTS / "weak.json", help="where to write the results")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
