"""Measures weak scaling over shaped links: `python -m benchmarks.weak`.

A partition group of two on each node, from two nodes to eight; each group always has the same work.
Efficiency is the throughput of a group relative to its throughput among the fewest groups, over the
same link. What is run, and why so, is in `benchmarks.weak.rows`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.goals import Goal, as_facts, is_one_missed, show_goals
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
from benchmarks.weak.rows import (
    FORWARD_S,
    GROUPS,
    LAYERS,
    LINKS_MBIT,
    NUM_MICRO_BATCHES,
    NUM_STEPS,
    PARTITION_SIZE,
    SYSTEMS,
    WIDTH,
    Emulated,
    Run,
    goals_of,
    rows_of,
    runs_of,
)

SEQUENCE_LENGTH = 4
LOSS_TOLERANCE = 1e-4


def main() -> int:
    """Run the benchmark; return 1 if a loss differs or our engine failed, else 0.

    With `--strict` a goal that is missed or not measured gives 1 too, and so do a peer that failed
    and a machine that cannot run it.
    """
    options = _parse()
    console = build_console()
    if reason := reason_to_skip():
        console.print(f"skipped: {reason}")
        return int(options.strict)
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    emulated = Emulated(options.layers, options.width, options.forward_s)
    results: dict[Run, list[Measured]] = {}
    sound = True
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as folder:
        for run in runs_of(options.links, options.groups, options.systems):
            measured = _measure(console, options, emulated, run, Path(folder))
            title = f"{run.num_groups} partition groups, links of {run.link_mbit:g} Mbit/s"
            show_results(console, title, measured)
            share = emulated.unhidden_share(run.num_groups, run.link_mbit)
            console.print(f"Hidden by nothing, the second hop would be {share:.1%} of a step.")
            difference, words = largest_loss_difference(measured)
            console.print(f"Losses: at most {difference:.1e} apart ({words}).")
            failed = any(r.error is not None for r in measured if r.system.startswith("mics"))
            sound &= difference <= LOSS_TOLERANCE and not failed
            results[run] = measured
    rows = rows_of(results)
    goals = goals_of(rows)
    _write(options.output, rows, goals, emulated, results)
    show_goals(console, goals)
    console.print(f"written to {options.output}")
    return int(not sound or (options.strict and is_missed(rows, goals)))


def is_missed(rows: Sequence[Mapping[str, Any]], goals: Sequence[Goal]) -> bool:
    """Whether a goal was not shown, there is none, or a system failed."""
    return is_one_missed(goals) or any("error" in row for row in rows)


def _measure(
    console: Console,
    options: argparse.Namespace,
    emulated: Emulated,
    run: Run,
    folder: Path,
) -> list[Measured]:
    layout = Layout(run.num_groups, PARTITION_SIZE)
    spec = training_job(
        write_tokens(folder, vocab_size=emulated.vocab_size),
        _model(emulated),
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


def _model(emulated: Emulated) -> dict[str, Any]:
    return emulated_model(
        emulated.width, emulated.layers, emulated.forward_s, vocab_size=emulated.vocab_size
    )


def _write(
    path: Path,
    rows: list[dict[str, Any]],
    goals: Sequence[Goal],
    emulated: Emulated,
    runs: Mapping[Run, Any],
) -> None:
    write_results(
        path,
        rows,
        goals=as_facts(goals),
        emulated=_model(emulated),
        parameters=emulated.num_parameters,
        compute_s=emulated.compute_s,
        unhidden_share=[
            {
                "groups": run.num_groups,
                "link_mbit": run.link_mbit,
                "share": emulated.unhidden_share(run.num_groups, run.link_mbit),
            }
            for run in runs
        ],
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak", description=__doc__)
    add = parser.add_argument
    add("--groups", type=_numbers, default=list(GROUPS), help="partition groups, such as 2,4,8")
    add("--systems", type=_names, default=list(SYSTEMS))
    add("--links", type=_links, default=list(LINKS_MBIT), help="Mbit/s of each node's link")
    add("--turns", type=int, default=1, help="turns of each system")
    add("--steps", type=int, default=NUM_STEPS, help="measured steps of a turn")
    add("--forward-s", type=float, default=FORWARD_S, help="a layer's forward; backward twice")
    add("--layers", type=int, default=LAYERS, help="layers")
    add("--width", type=int, default=WIDTH, help="width of a layer; its square is its parameters")
    add("--strict", action="store_true", help="exit with 1 if a goal is missed or a system failed")
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
