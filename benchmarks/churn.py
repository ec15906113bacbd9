"""Measures what a run keeps of its throughput under steady fire: `python -m benchmarks.churn`.

The real membership machine and the real engine, in processes without Ray (`benchmarks.miniature`):
a group starts in seconds, so that a run of minutes takes as many faults as a cluster does in days.
Compute is emulated, a stated time for each layer, and a group that starts runs on what the members
leave of the processors alone (root), so that two cores do not decide. The schedule has a seed:
workers killed, groups killed, nodes killed that hold two groups, and groups drained, each when all
wanted groups have trained for a random while.

Kept, as it is: the time that the committed steps take without faults and with all groups, divided
by the time that they took. Adjusted for capacity: each step is held against the undisturbed time
with as many groups as it had.

What is undisturbed is the same run without faults. The two take turns, A B A B A, each held at a
step while the other trains: from one minute to the next this machine is a twentieth faster or
slower, or more, which is more than the faults cost. So a turn under fire is held against the
undisturbed one before it and the one after it. How much longer a step is with fewer groups, short
runs of so many groups say before and after.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.goals import Bound, Goal, add_strict, as_facts, judge
from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.losses import largest_difference
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.miniature.run import Miniature
from mics_core.elastic import events as elastic
from mics_core.spec import JobSpec
from mics_core.spec.status import RegroupEvent, RegroupPhases, StepRecord

PARTITION_SIZE = 2
GLOBAL_BATCH_SIZE = 6
"""Micro-batches of one sample for each worker: 3 of a group alone, 1 of each of three."""
LAYERS, WIDTH = 1, 128
FORWARD_S = 0.04
"""Long enough that processors, which six workers and those that start share, do not decide."""
KINDS = {"worker killed": 26, "group killed": 16, "node killed": 8, "group drained": 12}
SETTLED_STEPS = 15
_AHEAD = 20
"""Steps ahead of the one at which members are to wait: all must hear of it before any is there, or
one that is beyond waits for those that are held."""
GOAL = 0.977
LONGEST_S = 480.0
LOSS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Turn:
    """What one run did between two pauses.

    Args:
        steps: The committed steps, those after the first: that one ends a pause.
        took_s: How long they took.
    """

    steps: list[StepRecord]
    took_s: float

    @classmethod
    def since(cls, run: Miniature, number: int) -> Turn:
        """Return the turn that began with step `number` of those committed."""
        steps = run.steps[number:]
        return cls(steps[1:], steps[-1].time - steps[0].time)

    @property
    def step_s(self) -> float:
        """A step of it, in the mean."""
        return self.took_s / len(self.steps)


@dataclass(frozen=True)
class Churned:
    """What a run under fire did.

    Args:
        turns: Its turns, each with the usual step beside it, in seconds: of the run without faults,
            in the turns before and after.
        faults: How many of each kind.
        run: The run, ended.
        undisturbed_losses: Those of the run without faults.
    """

    turns: list[tuple[Turn, float]]
    faults: Counter[str]
    run: Miniature
    undisturbed_losses: list[float]

    @property
    def steps(self) -> list[StepRecord]:
        """The committed steps of all turns."""
        return [step for mine, _ in self.turns for step in mine.steps]

    @property
    def took_s(self) -> float:
        """How long they took."""
        return sum(mine.took_s for mine, _ in self.turns)


def main() -> int:
    """Measure undisturbed, under fire, and undisturbed again; show and write what was kept.

    See `judge` for the exit status.
    """
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
    longer = {n: t / without[options.groups] for n, t in without.items()}
    row = row_of(churned, longer, reference)
    goals = goals_of(row, churned.took_s)
    table = Table(title=f"A run under {sum(churned.faults.values())} faults", title_justify="left")
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:.4g}" for value in row.values()))
    console.print(table)
    write_results(
        options.output,
        [row],
        goals=as_facts(goals),
        kinds=churned.faults,
        usual_step_s=[usual_s for _, usual_s in churned.turns],
        kept_by_turn=[adjusted / mine.took_s for mine, _, adjusted in dues_of(churned, longer)],
        lost_s_by_cause=lost_by_cause(churned, longer),
        phases_s=_phases_s(churned),
        settled_step_s=_settled_step_s(churned, options.groups),
        runs_of_fewer_groups_step_s={n: [fmean(times[n]) for times in usual] for n in usual[0]},
        seconds=churned.took_s,
        steps=len(churned.steps),
        emulated=emulated_model(WIDTH, LAYERS, FORWARD_S),
        newcomers_start_on_idle_processors=os.geteuid() == 0,
    )
    status = judge(console, goals, strict=options.strict)
    console.print(f"written to {options.output}")
    return status


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
    turns: list[tuple[Turn, float]] = []
    with (
        Miniature(spec, PARTITION_SIZE, options.groups, starts_quietly=starts_quietly) as run,
        Miniature(spec, PARTITION_SIZE, options.groups) as undisturbed,
    ):
        for each in (run, undisturbed):
            _gather(each, options.groups)
            _pause(each)
        before = _undisturbed_turn(undisturbed, options)
        for first in range(0, len(kinds), options.faults_of_a_turn):
            begun = len(run.steps)
            run.go_on()
            for kind in kinds[first : first + options.faults_of_a_turn]:
                _train_for(run, chance.uniform(*options.pause_s))
                victims = chance.sample(run.members, 2 if kind == "node killed" else 1)
                _strike(run, kind, victims, chance)
                faults[kind] += 1
                _miss(run, victims)
                _gather(run, options.groups)
            _train_for(run, options.pause_s[0])
            _pause(run)
            mine, after = Turn.since(run, begun), _undisturbed_turn(undisturbed, options)
            turns.append((mine, (before.step_s + after.step_s) / 2))
            before = after
            console.print(f"{sum(faults.values())} faults, step {run.course.step}")
        for each in (run, undisturbed):
            each.tell(elastic.CancelRequested("Enough."))
            each.finish()
    return Churned(turns, faults, run, [step.loss for step in undisturbed.steps])


def _undisturbed_turn(run: Miniature, options: argparse.Namespace) -> Turn:
    begun = len(run.steps)
    run.go_on()
    _train_for(run, options.undisturbed_s)
    _pause(run)
    return Turn.since(run, begun)


def _gather(run: Miniature, num_groups: int) -> None:
    run.until(lambda: len(run.members) == num_groups, f"{num_groups} groups")


def _miss(run: Miniature, victims: list[int]) -> None:
    run.until(lambda: not set(victims) & set(run.members), f"the loss of {victims}")


def _pause(run: Miniature) -> None:
    """Have the members wait at a step."""
    step = run.course.step + _AHEAD
    run.hold_at(step)
    run.until(lambda: run.course.step >= step, f"step {step}")


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
    """Return the mean of the steps with all groups that are far from a change, as a check."""
    settled, since = [], 0
    for earlier, later in (pair for mine, _ in churned.turns for pair in pairwise(mine.steps)):
        since = since + 1 if later.generation == earlier.generation else 0
        if since > SETTLED_STEPS and earlier.num_groups == later.num_groups == num_groups:
            settled.append(later.time - earlier.time)
    return fmean(settled)


def lost_by_cause(churned: Churned, longer: Mapping[int, float]) -> dict[str, float]:
    """Return how much longer than undisturbed the steps took, in seconds, by what they followed.

    That is the first step after groups were lost or left, the first ones of a generation with a
    newcomer up to its first share, all others while a group is away, whose replacement starts
    meanwhile, and those with all groups.
    """
    lost: Counter[str] = Counter()
    most = max(longer)
    for mine, usual_s in churned.turns:
        known = {step.generation for step in mine.steps[:1]}
        num_groups = mine.steps[0].num_groups
        for earlier, later in pairwise(mine.steps):
            if later.num_groups > num_groups:
                cause = "newcomers' first shares"
            elif later.generation in known:
                cause = "all groups" if later.num_groups == most else "while groups are away"
            else:
                cause = (
                    "losses and leaves" if later.num_groups < num_groups else "newcomers that copy"
                )
            known.add(later.generation)
            num_groups = later.num_groups
            lost[cause] += later.time - earlier.time - usual_s * longer[later.num_groups]
    return dict(lost)


def _phases_s(churned: Churned) -> dict[str, dict[str, float]]:
    """Return the median of each phase of the changes that followed a loss, and of all others."""
    changes = [e for e in churned.run.journal._events if isinstance(e, RegroupEvent)]
    medians: dict[str, dict[str, float]] = {}
    for name, is_loss in (("losses", True), ("others", False)):
        phases = [dict(e.phases) for e in changes if (e.phases.detect_s is not None) == is_loss]
        known = {
            key: [p[key] for p in phases if p[key] is not None]
            for key in RegroupPhases.model_fields
        }
        medians[name] = {key: median(times) for key, times in known.items() if times}
    return medians


def dues_of(churned: Churned, longer: Mapping[int, float]) -> list[tuple[Turn, float, float]]:
    """Return each turn under fire with how long its steps would have taken undisturbed, in seconds.

    That is once with all groups, and once with those that there were; see `row_of`.
    """
    return [
        (
            mine,
            usual_s * len(mine.steps),
            sum(usual_s * longer[step.num_groups] for step in mine.steps),
        )
        for mine, usual_s in churned.turns
    ]


def row_of(
    churned: Churned, longer: Mapping[int, float], reference: Sequence[float]
) -> dict[str, Any]:
    """Sum up a run under fire.

    Args:
        churned: The run.
        longer: By number of groups, a step in steps of all groups.
        reference: The losses of one process.
    """
    dues = dues_of(churned, longer)
    due_s, adjusted_s = sum(due for _, due, _ in dues), sum(adjusted for *_, adjusted in dues)
    samples = churned.run.course.samples
    losses = [step.loss for step in churned.run.steps]
    undisturbed = churned.undisturbed_losses
    common = min(len(losses), len(undisturbed))
    return {
        "faults": sum(churned.faults.values()),
        "kept_capacity_adjusted": adjusted_s / churned.took_s,
        "kept_raw": due_s / churned.took_s,
        "samples_lost": samples.due - samples.used,
        "samples_repeated": samples.repeated,
        "loss_max_relative_difference": largest_difference(reference, losses),
        "loss_max_relative_difference_to_undisturbed": largest_difference(
            undisturbed[:common], losses[:common]
        ),
    }


def goals_of(row: Mapping[str, Any], took_s: float) -> list[Goal]:
    """Return the benchmark's goals, for a run under fire that took so long."""
    kept = row["kept_capacity_adjusted"]
    return [
        Goal("throughput kept beyond the lost capacity", GOAL, kept),
        Goal("seconds of the run under fire", LONGEST_S, took_s, bound=Bound.AT_MOST),
        Goal("samples lost", 0, row["samples_lost"], bound=Bound.AT_MOST),
        Goal("samples repeated", 0, row["samples_repeated"], bound=Bound.AT_MOST),
        _agreement("one process's", row["loss_max_relative_difference"]),
        _agreement("the undisturbed run's", row["loss_max_relative_difference_to_undisturbed"]),
    ]


def _agreement(whose: str, difference: float) -> Goal:
    name = f"losses beside {whose}, largest relative difference"
    return Goal(name, LOSS_TOLERANCE, difference, bound=Bound.AT_MOST)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    add = parser.add_argument
    add("--faults", type=int, default=sum(KINDS.values()), help="how many")
    add("--groups", type=int, default=3, help="partition groups wanted")
    add("--seed", type=int, default=1, help="of the schedule")
    add("--pause-s", type=float, nargs=2, default=[2.7, 4.5], help="between two faults")
    add(
        "--faults-of-a-turn", type=int, default=4, help="before the run without faults has its turn"
    )
    add("--undisturbed-s", type=float, default=12.0, help="turns of the run without faults")
    add("--steps", type=int, default=100, help="steps of a run with each number of groups")
    add_strict(parser)
    add("--output", type=Path, default=RESULTS / "churn.json", help="where to write the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
