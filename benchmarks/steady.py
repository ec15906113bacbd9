"""Measures what elasticity costs a steady run: `python -m benchmarks.steady`.

The same loop of the same engine trains the same job twice on this machine: with fixed members, as
under `torchrun`, and as an elastic run with its supervisor, links and lifelines, the question for
losses before every micro-batch, and a report of every step.

It does so with two models. Layers of the one take a stated time, as on a device of their own: that
is where the goal is held. The other is computed by the cores of the machine, of which there are
fewer than workers here, so that every instruction beside a step makes it longer; that is told.

[Note: blocks]
Both are there at the same time and train in turn, a block of steps each; who does not train waits
for an event. A report leaves its worker beside the next step, and whatever an elastic run does
beside its steps has to fall into steps of its own. So blocks are long, and the first steps of each,
into which the other's last words may fall, are dropped. Each block is held against its neighbours,
and there are as many pairs in which the one way comes first as the other: from one minute to the
next this machine is a twentieth faster or slower. Where memory and threads come to lie as processes
start decides a few per cent as well, for as long as they live. So both ways are started anew,
either of them first in turn.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from benchmarks.harness.factory import WorldFactory
from benchmarks.harness.goals import Bound, Goal, add_strict, as_facts, judge
from benchmarks.harness.jobs import (
    VOCAB_SIZE,
    emulated_model,
    gpt2,
    training_job,
    write_tokens,
)
from benchmarks.harness.losses import largest_difference
from benchmarks.harness.messages import Block
from benchmarks.harness.nodes import LOCAL_NODE
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.harness.world import World
from benchmarks.network.systems.elastic import ADDRESS_VARIABLE, JOB_VARIABLE
from mics_core.cluster.driver import start_supervisor
from mics_core.cluster.layout import Layout
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.names import NAMESPACE
from mics_core.cluster.reaching import find_supervisor
from mics_core.planner.strategy import Strategy
from mics_core.spec import JobSpec

EMULATED, PROCESSORS = "emulated", "processors"
MODELS = {
    EMULATED: emulated_model(1024, 4, 0.03),
    PROCESSORS: gpt2(hidden_size=256, num_layers=4, num_heads=4, vocab_size=VOCAB_SIZE),
}
"""By what computes them."""
SEQUENCE_LENGTHS = {EMULATED: 4, PROCESSORS: 64}
PARTITION_SIZE = 2
NUM_GROUPS = 2
GLOBAL_BATCH_SIZE = 16
"""Four micro-batches of two samples for each group."""
JOB_ID = "steady"
WAYS = FIXED, ELASTIC = f"fixed p={PARTITION_SIZE}", f"elastic p={PARTITION_SIZE}"
Trained = tuple[str, Block]
"""A block and its way, one of `WAYS`."""
LOSS_TOLERANCE = 1e-5
GOAL = 1.01


def main() -> int:
    """Train both ways in turn, show and write the ratios; see `judge` for the exit status."""
    options = _parse()
    console = build_console()
    # An end by `kill` still ends the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    starts = {compute: _starts(console, compute, options) for compute in options.compute}
    rows = [
        {"compute": compute} | row_of(blocks, options.dropped) for compute, blocks in starts.items()
    ]
    goals = goals_of(rows)
    table = Table(title="A step of an elastic run against fixed members", title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(row["compute"], justify="right")
    for key in list(rows[0])[1:]:
        table.add_row(key, *(f"{row[key]:.4f}".removesuffix(".0000") for row in rows))
    console.print(table)
    write_results(
        options.output,
        rows,
        goals=as_facts(goals),
        models=MODELS,
        starts=[
            {
                "compute": compute,
                "ratio_median": row_of([blocks], options.dropped)["ratio_median"],
                "blocks": [_facts(way, block, options.dropped) for way, block in blocks],
            }
            for compute, each in starts.items()
            for blocks in each
        ],
    )
    status = judge(console, goals, strict=options.strict)
    console.print(f"written to {options.output}")
    return status


def _starts(console: Console, compute: str, options: argparse.Namespace) -> list[list[Trained]]:
    """Start both ways anew so many times; return the blocks of each start."""
    starts: list[list[Trained]] = []
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        spec = _job(write_tokens(Path(name)), compute)
        for number in range(options.starts):
            with _supervised(spec) as variables, WorldFactory([LOCAL_NODE], Path(name)) as forks:
                ways: list[tuple[str, dict[str, str]]] = [(FIXED, {}), (ELASTIC, variables)]
                order = ways if number % 2 == 0 else ways[::-1]
                starts.append(_measure(forks, spec, dict(order), options))
            ratio = row_of(starts[-1:], options.dropped)["ratio_median"]
            console.print(f"{compute}, start {number + 1} of {options.starts}: {ratio:.4f}")
    return starts


def _facts(way: str, block: Block, num_dropped: int) -> dict[str, Any]:
    return {
        "members": way.split()[0],
        "step_s": step_s(block, num_dropped),
        "processor_s": block.processor_s / len(block.times_s),
    }


def _job(tokens: Path, compute: str) -> JobSpec:
    spec = training_job(
        tokens,
        MODELS[compute],
        global_batch_size=GLOBAL_BATCH_SIZE,
        sequence_length=SEQUENCE_LENGTHS[compute],
        steps=1_000_000,
    )
    groups = spec.groups.model_copy(update={"wanted": NUM_GROUPS, "minimum": NUM_GROUPS})
    return spec.model_copy(update={"partition_size": PARTITION_SIZE, "groups": groups})


@contextmanager
def _supervised(spec: JobSpec) -> Iterator[dict[str, str]]:
    """Start the job's supervisor on a cluster without room, so that it starts no workers itself."""
    with LocalCluster(0, 0) as cluster:
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        try:
            start_supervisor(JOB_ID, Layout(PARTITION_SIZE, Strategy(), spec, "It is measured."))
            yield {ADDRESS_VARIABLE: cluster.address, JOB_VARIABLE: JOB_ID}
            ray.kill(find_supervisor(JOB_ID))
        finally:
            ray.shutdown()


def _measure(
    factory: WorldFactory,
    spec: JobSpec,
    variables: Mapping[str, dict[str, str]],
    options: argparse.Namespace,
) -> list[Trained]:
    """Train blocks in turn, A B A B A; return each with its way, in order.

    Args:
        factory: Forks the workers.
        spec: The job.
        variables: Environment variables of the workers, by way; the first one begins.
        options: How many blocks of how many steps.

    Raises:
        RuntimeError: The two do not compute the same.
    """
    workers = NUM_GROUPS * PARTITION_SIZE
    blocks: list[Trained] = []
    first, second = variables
    with (
        World(factory, first, workers, variables[first]) as one,
        World(factory, second, workers, variables[second]) as other,
    ):
        worlds = {first: one, second: other}
        for way, world in worlds.items():
            world.build(way, spec)
            world.block(options.warm_up)
        for _ in range(options.blocks):
            blocks += [(way, world.block(options.steps)) for way, world in worlds.items()]
            difference = largest_difference(blocks[-2][1].losses, blocks[-1][1].losses)
            if not difference <= LOSS_TOLERANCE:
                raise RuntimeError(f"the losses differ by {difference:.1e}: {blocks[-2:]}")
        blocks.append((first, one.block(options.steps)))
    return blocks


def step_s(block: Block, num_dropped: int) -> float:
    """Return the mean step of a block without its first ones.

    It is the mean, so that what comes only now and then beside a step counts too.

    Args:
        block: The block.
        num_dropped: Steps that are dropped, at least the first: it has no commit before it.
    """
    kept = block.times_s[num_dropped - 1 :]
    return (kept[-1] - kept[0]) / (len(kept) - 1)


def row_of(starts: Sequence[Sequence[Trained]], num_dropped: int) -> dict[str, Any]:
    """Sum up blocks that were trained in turn; see [Note: blocks].

    Args:
        starts: For each start of the processes its blocks, in the order in which they were trained.
        num_dropped: First steps of a block that do not count.
    """
    times = [[(way, step_s(block, num_dropped)) for way, block in blocks] for blocks in starts]
    usage = [
        [(way, block.processor_s / len(block.times_s)) for way, block in blocks]
        for blocks in starts
    ]
    ratios = [ratio for blocks in times for ratio in ratios_of(blocks)]
    lower, _, upper = quantiles(ratios, n=4)
    steps = {way: [s for blocks in times for own, s in blocks if own == way] for way in WAYS}
    return {
        "starts": len(starts),
        "blocks": sum(map(len, starts)),
        "steps_of_a_block": len(starts[0][0][1].times_s),
        "dropped_of_a_block": num_dropped,
        "fixed_step_s_median": median(steps[FIXED]),
        "elastic_step_s_median": median(steps[ELASTIC]),
        "pairs": len(ratios),
        "ratio_median": median(ratios),
        "ratio_lower_quartile": lower,
        "ratio_upper_quartile": upper,
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "processor_ratio_median": median(r for blocks in usage for r in ratios_of(blocks)),
    }


def ratios_of(figures: Sequence[tuple[str, float]]) -> list[float]:
    """Return elastic over fixed for every two neighbours.

    Every block but the first and the last is in two pairs, once before and once behind the other
    way. So a machine that becomes slower or faster makes one of the two larger and one smaller.
    """
    pairs = [dict(pair) for pair in pairwise(figures)]
    return [pair[ELASTIC] / pair[FIXED] for pair in pairs]


def goals_of(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """Return the benchmark's goal, and what is told beside it."""
    ratios = {row["compute"]: row["ratio_median"] for row in rows}
    name, reason = "a step of an elastic run over one with fixed members", "it was not run."
    goals = [
        Goal(
            f"{name}, emulated device",
            GOAL,
            ratios.get(EMULATED),
            "" if EMULATED in ratios else reason,
            bound=Bound.AT_MOST,
        )
    ]
    if PROCESSORS in ratios:
        goals.append(Goal(f"{name}, computed by the processors", None, ratios[PROCESSORS]))
    return goals


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steady", description=__doc__)
    add = parser.add_argument
    add("--compute", nargs="+", choices=MODELS, default=[*MODELS], help="what computes")
    add("--starts", type=int, default=4, help="times that the processes of both are started")
    add("--blocks", type=int, default=9, help="blocks of each way a start, one more of the first")
    add("--steps", type=int, default=10, help="steps of a block")
    add("--dropped", type=int, default=2, help="first steps of a block that do not count")
    add("--warm-up", type=int, default=5, help="steps of each way before the first block")
    add_strict(parser)
    add("--output", type=Path, default=RESULTS / "steady.json", help="where to write the results")
    options = parser.parse_args()
    if min(options.starts, options.blocks) < 1 or not 1 <= options.dropped < options.steps - 1:
        parser.error("there must be a start, a block of each way, a step dropped and 2 kept.")
    return options


if __name__ == "__main__":
    sys.exit(main())
