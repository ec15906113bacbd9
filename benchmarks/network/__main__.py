"""Measures our engine and its peers over emulated nodes: `python -m benchmarks.network`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.goals import Goal, add_strict, as_facts, is_one_missed, show_goals
from benchmarks.harness.jobs import VOCAB_SIZE, gpt2, training_job, write_tokens
from benchmarks.harness.nodes import EmulatedNetwork, reason_to_skip
from benchmarks.harness.output import RESULTS, build_console, update_facts, write_results
from benchmarks.network.deepspeed_env import MICS_VERSION, NEWEST_VERSION
from benchmarks.network.goals import evaluate
from benchmarks.network.layouts import (
    Layout,
    default_systems,
    parse_layout,
    predicted_systems,
)
from benchmarks.network.measure import (
    Factories,
    Measured,
    Plan,
    largest_loss_difference,
    measure,
)
from benchmarks.network.report import show_results
from mics_core.spec import JobSpec

NUM_MICRO_BATCHES = 4
LOSS_TOLERANCE = 1e-4
MODEL = gpt2(hidden_size=384, num_layers=6, num_heads=6, vocab_size=VOCAB_SIZE)
"""10.9 million parameters."""


def main() -> int:
    """Run the comparison; return 1 if a loss differs or our engine failed, else 0.

    With `--strict` a goal that is missed or not measured gives 1 too, and so does a machine that
    cannot run the comparison.
    """
    options = _parse()
    console = build_console()
    if options.judge:
        return _judge(console, options)
    if reason := reason_to_skip():
        console.print(f"skipped: {reason}")
        return int(options.strict)
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: list[Measured] = []
    sound = True
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        folder = Path(name)
        for layout in options.layouts:
            spec = training_job(write_tokens(folder), MODEL, global_batch_size=_batch(layout))
            for measured in _measure_layout(console, options, layout, spec, folder):
                results += measured
                sound &= _check(console, measured)
                _write(options.output, results, options)
    goals = _write(options.output, results, options)
    show_goals(console, goals)
    console.print(f"written to {options.output}")
    return int(not sound or (options.strict and is_one_missed(goals)))


def _judge(console: Console, options: argparse.Namespace) -> int:
    """Hold the goals against results that are there; return 1 if one is missed and that counts."""
    goals = evaluate(json.loads(options.output.read_text(encoding="utf-8")))
    show_goals(console, goals)
    update_facts(options.output, goals=as_facts(goals))
    return int(options.strict and is_one_missed(goals))


def _measure_layout(
    console: Console, options: argparse.Namespace, layout: Layout, spec: JobSpec, folder: Path
) -> Iterator[list[Measured]]:
    """Yield the results of each link."""
    with ExitStack() as stack:
        network = stack.enter_context(EmulatedNetwork(layout.num_nodes))
        factories = Factories(network, folder, stack)
        for link_mbit in options.links:
            network.shape(link_mbit)
            systems = options.systems or _systems(options, layout, link_mbit)
            link = "unshaped links" if link_mbit is None else f"links of {link_mbit:g} Mbit/s"
            title = f"{layout.num_nodes} nodes × {layout.workers_per_node} workers, {link}"
            with console.status(title) as status:

                def say(what: str, title: str = title, status: Any = status) -> None:
                    status.update(f"{title}: {what}")
                    if not console.is_terminal:
                        console.print(f"{title}: {what}")

                measured = measure(
                    factories,
                    spec,
                    systems,
                    layout,
                    link_mbit,
                    _plan(options, link_mbit),
                    say,
                )
            show_results(console, title, measured)
            yield measured


def _systems(options: argparse.Namespace, layout: Layout, link_mbit: float | None) -> list[str]:
    if options.predicted:
        return predicted_systems(layout)
    return default_systems(layout, link_mbit)


def _check(console: Console, measured: Sequence[Measured]) -> bool:
    """Say whether all losses agree and our engine worked."""
    difference, words = largest_loss_difference(measured)
    agree = difference <= LOSS_TOLERANCE
    color = "green" if agree else "bold red"
    said = "agree" if agree else "DISAGREE"
    console.print(f"[{color}]Losses {said}: at most {difference:.1e} apart ({words}).[/{color}]")
    works = all(r.error is None for r in measured if r.system.startswith("mics"))
    return agree and works


def _batch(layout: Layout) -> int:
    return layout.world_size * NUM_MICRO_BATCHES


def _plan(options: argparse.Namespace, link_mbit: float | None) -> Plan:
    """Take more steps where they are fast, and where a goal is a per cent."""
    if link_mbit is None:
        warm_up, steps = 2, 4
    else:
        warm_up, steps = 1, 2 if link_mbit >= 1000 else 1
    turns = 1 if options.quick else 3
    return Plan(
        num_turns=options.turns or turns,
        num_warm_up=options.warm_up or (1 if options.quick else warm_up),
        num_steps=options.steps or (1 if options.quick else steps),
    )


def _write(path: Path, results: Sequence[Measured], options: argparse.Namespace) -> list[Goal]:
    """Write what there is so far; return its goals, of which predictions alone have none."""
    rows = [result.as_row() for result in results]
    goals = [] if options.predicted else evaluate(rows)
    write_results(
        path,
        rows,
        goals=as_facts(goals),
        model=MODEL,
        micro_batches=NUM_MICRO_BATCHES,
        deepspeed={"zero3": NEWEST_VERSION, "mics": MICS_VERSION},
    )
    return goals


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=__doc__)
    add = parser.add_argument
    add("--layouts", type=_layouts, default=_layouts("4x2,2x4"), help="such as 4x2,2x4")
    add("--links", type=_links, default=_links("200,1000,unshaped"), help="Mbit/s, or unshaped")
    add("--systems", type=_names, help="names separated by commas; all by default")
    add("--predicted", action="store_true", help="our engine in many layouts, for the predictions")
    add("--turns", type=int, help="turns of each system; 3 by default")
    add("--steps", type=int, help="measured steps of a turn; the default depends on the link")
    add("--warm-up", type=int, help="steps of a turn before them; the default depends on the link")
    add("--quick", action="store_true", help="one turn of one step, results kept apart")
    add_strict(parser)
    add("--judge", action="store_true", help="run nothing: hold goals against --output's rows")
    add("--output", type=Path, help="where to write the results")
    options = parser.parse_args()
    if options.predicted and (options.strict or options.judge):
        parser.error("--predicted has no goals, so neither --strict nor --judge goes with it.")
    if options.output is None:
        quick = RESULTS.parent / ".cache" / "network-quick.json"
        name = "predicted.json" if options.predicted else "network.json"
        options.output = quick if options.quick else RESULTS / name
    return options


def _layouts(text: str) -> list[Layout]:
    return [parse_layout(part) for part in text.split(",")]


def _links(text: str) -> list[float | None]:
    return [None if part == "unshaped" else float(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
