"""Measures what a run keeps of its throughput under steady fire: `python -m benchmarks.churn`.

The real membership machine and the real engine, in processes without Ray (`benchmarks.miniature`):
a group starts in seconds, so that a run of minutes takes as many faults as a cluster does in days.
Compute is emulated, a stated time for each layer, and a group that starts takes what the members
leave of the processors (root), so that two cores do not decide. The schedule has a seed: workers
killed, groups killed, nodes killed that hold two groups, and groups drained, each when all wanted
groups have trained for a random while.

Kept, as it is: the time that the committed steps take without faults and with all groups, divided
by the time that they took. Adjusted for capacity: each step is held against the undisturbed time
with as many groups as it had.

What is undisturbed with all groups is taken from the run itself, from its steps long after a change
and before the next: from one run to the next this machine is a twentieth faster or slower, which is
more than the faults cost. With fewer groups there are no such steps; there, runs without faults
before and after say how much longer a step is than with all groups.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.miniature.run import Miniature
from mics_core.elastic import events as elastic
from mics_core.spec import JobSpec
from mics_core.spec.status import StepRecord

PARTITION_SIZE = 2
GLOBAL_BATCH_SIZE = 6
"""Micro-batches of one sample for each worker: 3 of a group alone, 1 of each of three."""
LAYERS, WIDTH = 1, 128
FORWARD_S = 0.01
KINDS = {"worker killed": 26, "group killed": 16, "node killed": 8, "group drained": 12}
SETTLED_STEPS = 15
GOAL = 0.977


@dataclass(frozen=True)
class Churned:
    """What a run under fire did.

    Args:
        steps: Its committed steps.
        faults: How many of each kind.
        first: When it was first complete, in seconds since the epoch.
        run: The run, ended.
    """

    steps: list[StepRecord]
    faults: Counter[str]
    first: float
    run: Miniature


def main() -> int:
    """Measure undisturbed, under fire, and undisturbed again; show and write what was kept."""
    options = _parse()
    console = build_console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = [kind for kind, number in KINDS.items() for _ in range(number)]
    random.Random(options.seed).shuffle(kinds)
    kinds = kinds[: options.faults]
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        tokens = write_tokens(Path(name))
        usual = [_undisturbed(tokens, options)]
        churned = _churn(tokens, options, kinds, console)
        usual.append(_undisturbed(tokens, options))
        without = {n: fmean(t for times in usual for t in times[n]) for n in usual[0]}
        reference = _losses_without_faults(tokens, len(churned.run.steps))
    settled_s = _settled_step_s(churned, options.groups)
    step_s = {n: settled_s * t / without[options.groups] for n, t in without.items()}
    row = _row(churned, step_s, reference)
    table = Table(title=f"A run under {sum(churned.faults.values())} faults", title_justify="left")
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:.4g}" for value in row.values()))
    console.print(table)
    console.print(f"goal: {GOAL:.1%} with capacity taken out")
    write_results(
        options.output,
        [row],
        kinds=churned.faults,
        undisturbed_step_s=step_s,
        runs_without_faults_step_s={n: [fmean(times[n]) for times in usual] for n in usual[0]},
        seconds=churned.steps[-1].time - churned.first,
        steps=len(churned.steps),
        emulated=emulated_model(WIDTH, LAYERS, FORWARD_S),
        newcomers_start_at_lowest_priority=os.geteuid() == 0,
    )
    console.print(f"written to {options.output}")
    return 0


def _job(tokens: Path, forward_s: float, steps: int) -> JobSpec:
    spec = training_job(
        tokens,
        emulated_model(WIDTH, LAYERS, forward_s),
        global_batch_size=GLOBAL_BATCH_SIZE,
        sequence_length=4,
        steps=steps,
    )
    return spec.model_copy(update={"partition_size": PARTITION_SIZE})


def _undisturbed(tokens: Path, options: argparse.Namespace) -> dict[int, list[float]]:
    """Return the times of steps with each number of groups; a change's first steps left out."""
    times: dict[int, list[float]] = {}
    for number in range(1, options.groups + 1):
        steps = options.steps + 3
        with Miniature(_job(tokens, FORWARD_S, steps), PARTITION_SIZE, number) as run:
            run.finish()
            committed = [step.time for step in run.steps]
        times[number] = [later - earlier for earlier, later in pairwise(committed[2:])]
    return times


def _churn(
    tokens: Path, options: argparse.Namespace, kinds: list[str], console: Console
) -> Churned:
    chance = random.Random(options.seed)
    faults: Counter[str] = Counter()
    spec = _job(tokens, FORWARD_S, 1_000_000)
    # On a cluster it would start elsewhere, and not on the members' processors.
    starts_quietly = os.geteuid() == 0
    with Miniature(spec, PARTITION_SIZE, options.groups, starts_quietly=starts_quietly) as run:
        run.go_on()
        run.until(lambda: len(run.members) == options.groups, "all groups")
        run.until(lambda: run.steps, "the first step")
        first = time.time()
        for number, kind in enumerate(kinds, start=1):
            _train_for(run, chance.uniform(*options.pause_s))
            victims = chance.sample(run.members, 2 if kind == "node killed" else 1)
            _strike(run, kind, victims, chance)
            faults[kind] += 1
            run.until(lambda gone=victims: not set(gone) & set(run.members), f"{kind} {victims}")
            run.until(lambda: len(run.members) == options.groups, f"all groups after {kind}")
            if number % 10 == 0:
                console.print(f"{number} faults, step {run.course.step}")
        _train_for(run, options.pause_s[1])
        run.tell(elastic.CancelRequested("Enough."))
        run.finish()
    steps = [step for step in run.steps if step.time > first]
    return Churned(steps, faults, first, run)


def _train_for(run: Miniature, seconds: float) -> None:
    end = time.monotonic() + seconds
    run.until(lambda: time.monotonic() > end, "time")


def _strike(run: Miniature, kind: str, victims: list[int], chance: random.Random) -> None:
    if kind == "group drained":
        run.tell(elastic.GroupDraining(victims[0], "Its node is being drained."))
        return
    ranks = (chance.randrange(PARTITION_SIZE),) if kind == "worker killed" else ()
    for victim in victims:
        run.kill(victim, *ranks)


def _losses_without_faults(tokens: Path, steps: int) -> list[float]:
    """Return the losses of one worker; its emulated device takes no time and computes the same."""
    spec = _job(tokens, 0.0, steps).model_copy(update={"partition_size": 1})
    with Miniature(spec, 1, 1) as run:
        run.finish()
        return [step.loss for step in run.steps]


def _settled_step_s(churned: Churned, num_groups: int) -> float:
    """Return the mean of the steps with all groups that are far from a change."""
    settled, since = [], 0
    for earlier, later in pairwise(churned.steps):
        since = since + 1 if later.generation == earlier.generation else 0
        if since > SETTLED_STEPS and earlier.num_groups == later.num_groups == num_groups:
            settled.append(later.time - earlier.time)
    return fmean(settled)


def _row(churned: Churned, step_s: dict[int, float], reference: list[float]) -> dict[str, Any]:
    took_s = churned.steps[-1].time - churned.first
    all_groups = step_s[max(step_s)]
    samples = churned.run.course.samples
    losses = [step.loss for step in churned.run.steps]
    differences = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    return {
        "faults": sum(churned.faults.values()),
        "kept_capacity_adjusted": sum(step_s[s.num_groups] for s in churned.steps) / took_s,
        "kept_raw": all_groups * len(churned.steps) / took_s,
        "samples_lost": samples.due - samples.used,
        "samples_repeated": samples.repeated,
        "loss_max_relative_difference": max(differences),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    add = parser.add_argument
    add("--faults", type=int, default=sum(KINDS.values()), help="how many")
    add("--groups", type=int, default=3, help="partition groups wanted")
    add("--seed", type=int, default=1, help="of the schedule")
    add("--pause-s", type=float, nargs=2, default=[4.0, 8.0], help="between two faults")
    add("--steps", type=int, default=20, help="undisturbed steps with each number of groups")
    add("--output", type=Path, default=RESULTS / "churn.json", help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
