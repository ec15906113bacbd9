"""Measures what elasticity costs a steady run: `python -m benchmarks.steady`.

The same engine trains the same job twice on this machine: with fixed members, and as an elastic run
with its supervisor, links and lifelines, the question for losses before every micro-batch, and a
report of every step. Both live at the same time and take their steps in turn.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import ray
from rich.table import Table

from benchmarks.harness.factory import WorldFactory
from benchmarks.harness.jobs import VOCAB_SIZE, gpt2, training_job, write_tokens
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

MODEL = gpt2(hidden_size=256, num_layers=4, num_heads=4, vocab_size=VOCAB_SIZE)
PARTITION_SIZE = 2
NUM_GROUPS = 2
GLOBAL_BATCH_SIZE = 16
"""Four micro-batches of two samples for each group."""
JOB_ID = "steady"
WARM_UP = 5


def main() -> int:
    """Train both ways in turn, show and write the ratio."""
    options = _parse()
    console = build_console()
    # An end by `kill` still ends the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        spec = _job(write_tokens(Path(name)))
        with _supervised(spec) as variables, WorldFactory([LOCAL_NODE], Path(name)) as forks:
            pairs = _measure(forks, spec, variables, options.steps)
    row = _row(pairs)
    table = Table(title="A step of an elastic run against fixed members", title_justify="left")
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:.4f}".removesuffix(".0000") for value in row.values()))
    console.print(table)
    write_results(options.output, [row], model=MODEL, pairs=pairs)
    console.print(f"written to {options.output}")
    return 0


def _job(tokens: Path) -> JobSpec:
    spec = training_job(tokens, MODEL, global_batch_size=GLOBAL_BATCH_SIZE, steps=1_000_000)
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
    factory: WorldFactory, spec: JobSpec, variables: dict[str, str], num_steps: int
) -> list[tuple[float, float]]:
    """Return the seconds of each step, with fixed members and elastic.

    Raises:
        RuntimeError: The two do not compute the same.
    """
    workers = NUM_GROUPS * PARTITION_SIZE
    names = (f"mics p={PARTITION_SIZE}", f"elastic p={PARTITION_SIZE}")
    pairs = []
    with (
        World(factory, names[0], workers) as fixed,
        World(factory, names[1], workers, variables) as elastic,
    ):
        fixed.build(names[0], spec)
        elastic.build(names[1], spec)
        for index in range(WARM_UP + num_steps):
            # Who goes first changes, for the first may find caches that the other has emptied.
            order = (fixed, elastic) if index % 2 else (elastic, fixed)
            steps = {world: world.step(index) for world in order}
            if abs(steps[fixed].loss - steps[elastic].loss) > 1e-5 * steps[fixed].loss:
                raise RuntimeError(f"step {index}: the losses differ: {steps}")
            if index >= WARM_UP:
                pairs.append((steps[fixed].step_s, steps[elastic].step_s))
    return pairs


def _row(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [elastic / fixed for fixed, elastic in pairs]
    lower, _, upper = quantiles(ratios, n=4)
    return {
        "steps": len(pairs),
        "fixed_step_s_median": median(fixed for fixed, _ in pairs),
        "elastic_step_s_median": median(elastic for _, elastic in pairs),
        "ratio_median": median(ratios),
        "ratio_lower_quartile": lower,
        "ratio_upper_quartile": upper,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steady", description=__doc__)
    add = parser.add_argument
    add("--steps", type=int, default=200, help="steps of each that count")
    add("--output", type=Path, default=RESULTS / "steady.json", help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
