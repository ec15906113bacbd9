"""Measures a join whose states take several steps to copy: `python -m benchmarks.join`.

Emulated nodes with shaped links: partition groups train, one on each node but the last, and there
another joins. Its states come over the links that the members' second hop uses too. Compute is
emulated, so that the machine's cores do not decide. The losses must be those of a run without a
join.

A newcomer that listens makes the ring of the second hop longer: with it, n nodes send 2(n-1)/n of
the gradient each, and without 2(n-2)/(n-1). And a copy has of a link what the second hop leaves. So
the number of nodes decides, and the share of a step that the second hop is; several of both are
measured, with links and states scaled so that the machine carries the same.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import accumulate, product
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.factory import WorldFactory
from benchmarks.harness.goals import Bound, Goal, add_strict, as_facts, judge
from benchmarks.harness.jobs import VOCAB_SIZE, emulated_model, training_job, write_tokens
from benchmarks.harness.losses import largest_difference
from benchmarks.harness.nodes import EmulatedNetwork, reason_to_skip
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.harness.world import Step, World
from benchmarks.network.systems.joining import TIMES_VARIABLE
from benchmarks.recovery.outcome import extra_of
from mics_core.spec import JobSpec

PARTITION_SIZE = 2
MICRO_BATCHES_OF_MEMBER = 2
_FEWEST_NODES = 4
SEQUENCE_LENGTH = 4
LOSS_TOLERANCE = 1e-4
GOAL = 0.10
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Join:
    """One join.

    Args:
        normal_s: The members' step before it, in the median.
        announced_s: The step within which it was announced; the members connect beside it.
        copying_s: The steps in which the newcomer listened, from the boundary at which it came.
        first_share_s: The step after them.
        normal_after_s: The step with the newcomer's share, in the median.
    """

    normal_s: float
    announced_s: float
    copying_s: list[float]
    first_share_s: float
    normal_after_s: float

    @property
    def extra_ratio(self) -> float:
        """What the members' steps took longer until the newcomer had its share, in normal steps.

        See [Note: what a change adds] in `benchmarks.recovery.outcome`.
        """
        steps = [self.announced_s, *self.copying_s, self.first_share_s]
        times = list(accumulate(steps, initial=0.0))
        return extra_of(times, self.normal_s, self.normal_after_s).ratio


def main() -> int:
    """Run the benchmark; return 1 if a loss differs, else 0.

    With `--strict` a goal that is missed gives 1 too, and so does a machine that cannot run it.
    """
    options = _parse()
    console = build_console()
    if reason := reason_to_skip():
        console.print(f"skipped: {reason}")
        return int(options.strict)
    # An end by `kill` still takes the nodes down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows, facts = [], []
    for num_nodes, forward_s in product(options.nodes, options.forward_s):
        console.print(_setting(num_nodes, forward_s))
        row, joins = _measure(console, options, num_nodes, forward_s)
        rows.append(row)
        facts.append([asdict(join) for join in joins])
    table = Table(title="A join while the others train", title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(_setting(row["nodes"], row["forward_s"]), justify="right")
    for key in list(rows[0])[2:]:
        table.add_row(key, *(f"{row[key]:.4g}" for row in rows))
    console.print(table)
    emulated = {"layers": options.layers, "width": options.width}
    goals = goals_of(rows)
    write_results(
        options.output, rows, goals=as_facts(goals), emulated_on_4_nodes=emulated, each=facts
    )
    status = judge(console, goals, strict=options.strict)
    console.print(f"written to {options.output}")
    agree = all(row["loss_max_relative_difference"] <= LOSS_TOLERANCE for row in rows)
    return int(status or not agree)


def goals_of(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Return the benchmark's goals, for each number of nodes and length of a layer."""
    goals = []
    for row in rows:
        where = _setting(row["nodes"], row["forward_s"])
        difference = row["loss_max_relative_difference"]
        extra = f"{where}: extra time of the members, steps"
        losses = f"{where}: losses, largest relative difference"
        goals += [
            Goal(extra, GOAL, row["extra_step_ratio_median"], bound=Bound.BELOW),
            Goal(losses, LOSS_TOLERANCE, difference, bound=Bound.AT_MOST),
        ]
    return goals


def _setting(num_nodes: int, forward_s: float) -> str:
    return f"{num_nodes} nodes, {forward_s:g} s a layer"


def _measure(
    console: Console, options: argparse.Namespace, num_nodes: int, forward_s: float
) -> tuple[dict[str, Any], list[Join]]:
    """Measure joins of the last of so many nodes; return the result, and each join."""
    # More nodes send less each, so that the machine carries the same, over links as much slower.
    share = _FEWEST_NODES / num_nodes
    link, width = options.link * share, 16 * round(options.width * share**0.5 / 16)
    model = emulated_model(width, options.layers, forward_s)
    joins: list[Join] = []
    expected: list[float] = []
    losses: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        spec = training_job(
            write_tokens(folder),
            model,
            global_batch_size=PARTITION_SIZE * MICRO_BATCHES_OF_MEMBER * (num_nodes - 1),
            sequence_length=SEQUENCE_LENGTH,
        )
        network = stack.enter_context(EmulatedNetwork(num_nodes))
        network.shape(link)
        factory = stack.enter_context(WorldFactory(network.nodes, folder))
        number = options.at + options.after
        undisturbed = _run(factory, spec, f"joining p={PARTITION_SIZE}", folder, number)[0]
        for turn in range(options.turns):
            system = f"joining p={PARTITION_SIZE} at={options.at}"
            steps, shares = _run(factory, spec, system, folder, number)
            joins.append(join_of([step.step_s for step in steps], shares, options.at, num_nodes))
            expected += [step.loss for step in undisturbed]
            losses += [step.loss for step in steps]
            console.print(f"turn {turn + 1}: {joins[-1]}, {joins[-1].extra_ratio:+.3f} of a step")
    return {
        "nodes": num_nodes,
        "forward_s": forward_s,
        "link_mbit": link,
        "state_bytes": _state_bytes(width, options.layers),
        "joins": len(joins),
        "normal_step_s_median": median(join.normal_s for join in joins),
        "copying_steps_median": median(len(join.copying_s) for join in joins),
        "extra_step_ratio_median": median(join.extra_ratio for join in joins),
        "extra_step_ratio_max": max(join.extra_ratio for join in joins),
        "loss_max_relative_difference": largest_difference(expected, losses),
    }, joins


def _run(
    factory: WorldFactory, spec: JobSpec, system: str, folder: Path, number: int
) -> tuple[list[Step], list[int]]:
    """Return the steps of a run, and how many groups had a share in each."""
    shares = folder / f"{system.replace(' ', '-')}.steps"
    shares.unlink(missing_ok=True)
    variables = {TIMES_VARIABLE: str(shares)}
    with World(factory, system, PARTITION_SIZE, variables) as world:
        world.build(system, spec)
        steps = [world.step(index) for index in range(number)]
    lines = shares.read_text(encoding="utf-8").splitlines()
    return steps, [int(line.split()[1]) for line in lines]


def join_of(times: Sequence[float], shares: Sequence[int], at: int, num_nodes: int) -> Join:
    """Return what a run says of its join.

    Args:
        times: Seconds of each step.
        shares: How many groups had a share in each.
        at: The step at whose begin the newcomer came; it was announced within the one before.
        num_nodes: Groups with it.

    Raises:
        RuntimeError: It got no share in time to see the steps after it.
    """
    first = shares.index(num_nodes) if num_nodes in shares else len(times)
    if first + 1 >= len(times):
        raise RuntimeError(f"the run was over too soon, with shares of {shares}; raise --after.")
    return Join(
        normal_s=median(times[_WARM_UP : at - 1]),
        announced_s=times[at - 1],
        copying_s=list(times[at:first]),
        first_share_s=times[first],
        normal_after_s=median(times[first + 1 :]),
    )


def _state_bytes(width: int, layers: int) -> int:
    """Bytes of fp32 parameters and both moments of AdamW, of one partition group."""
    parameters = 2 * VOCAB_SIZE * width + layers * (width * width + 2 * width)
    return 12 * parameters


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.join", description=__doc__)
    add = parser.add_argument
    add("--nodes", type=int, nargs="+", default=[4, 8], help="nodes, the newcomer's among them")
    add("--turns", type=int, default=10, help="joins")
    add("--at", type=int, default=8, help="the step that a newcomer comes at")
    add("--after", type=int, default=10, help="steps from there on")
    add("--link", type=float, default=200.0, help="Mbit/s of each of 4 nodes' links")
    add(
        "--forward-s",
        type=float,
        nargs="+",
        default=[0.0625, 0.15],
        help="emulated forward of a layer; each is measured",
    )
    add("--layers", type=int, default=4, help="layers")
    add("--width", type=int, default=1408, help="width of a layer; its square is its parameters")
    add_strict(parser)
    add("--output", type=Path, default=RESULTS / "join.json", help="where to write the results")
    options = parser.parse_args()
    if options.at < _WARM_UP + 2:
        parser.error(f"--at must leave steps to compare with: at least {_WARM_UP + 2}.")
    return options


if __name__ == "__main__":
    sys.exit(main())
