"""Measures what faults cost: `python -m benchmarks.recovery`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import ray
from rich.table import Table

from benchmarks.harness.followed import FollowedJob
from benchmarks.harness.jobs import VOCAB_SIZE, gpt2, training_job, write_tokens
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.recovery.faults import FAULTS, Outcome, Shooting
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.names import NAMESPACE

MODEL = gpt2(hidden_size=128, num_layers=4, num_heads=4, vocab_size=VOCAB_SIZE)
PARTITION_SIZE = 2
NUM_GROUPS = 3
GLOBAL_BATCH_SIZE = 24
"""Twelve micro-batches of two samples: four for each of three groups, six for each of two."""


def main() -> int:
    """Run the faults in turn and write what they cost."""
    options = _parse()
    console = build_console()
    outcomes: dict[str, list[Outcome]] = {fault: [] for fault in options.faults}
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        spec = training_job(
            write_tokens(Path(name)),
            MODEL,
            global_batch_size=GLOBAL_BATCH_SIZE,
        ).model_copy(update={"partition_size": PARTITION_SIZE})
        spec = spec.model_copy(
            update={"groups": spec.groups.model_copy(update={"wanted": NUM_GROUPS, "maximum": 4})}
        )
        with LocalCluster(NUM_GROUPS, PARTITION_SIZE) as cluster:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            try:
                with FollowedJob(spec) as job:
                    shooting = Shooting(job, cluster, seed=options.seed)
                    shooting.settle()
                    for turn in range(options.repetitions):
                        for fault in options.faults:
                            outcome = shooting.inflict(fault)
                            outcomes[fault].append(outcome)
                            console.print(f"{turn + 1}: {fault}: {outcome}")
                    job.cancel()
                    job.ended()
            finally:
                ray.shutdown()
    rows = [_row("mics-elastic", fault, found) for fault, found in outcomes.items() if found]
    console.print(_table(rows))
    write_results(
        options.output,
        rows,
        model=MODEL,
        outcomes={fault: [asdict(each) for each in found] for fault, found in outcomes.items()},
    )
    console.print(f"written to {options.output}")
    return 0


def _row(system: str, fault: str, outcomes: list[Outcome]) -> dict[str, Any]:
    stalls = [outcome.stall_s for outcome in outcomes]
    row: dict[str, Any] = {
        "system": system,
        "fault": fault,
        "repetitions": len(outcomes),
        "stall_s_median": median(stalls),
        "stall_s_max": max(stalls),
        "steps_redone": max(outcome.steps_redone for outcome in outcomes),
        "extra_step_ratio_median": median(outcome.extra_step_ratio for outcome in outcomes),
    }
    until = [o.until_contribution_s for o in outcomes if o.until_contribution_s is not None]
    return row | ({"until_contribution_s_median": median(until)} if until else {})


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="What a fault costs the survivors", title_justify="left")
    for heading in ("system", "fault", "times"):
        table.add_column(heading)
    for heading in ("stall s", "max s", "steps redone", "extra step", "until part s"):
        table.add_column(heading, justify="right")
    for row in rows:
        until = row.get("until_contribution_s_median")
        table.add_row(
            row["system"],
            row["fault"],
            str(row["repetitions"]),
            f"{row['stall_s_median']:.2f}",
            f"{row['stall_s_max']:.2f}",
            str(row["steps_redone"]),
            f"{100 * row['extra_step_ratio_median']:.0f} %",
            "" if until is None else f"{until:.1f}",
        )
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    add = parser.add_argument
    add("--faults", type=lambda text: text.split(","), default=list(FAULTS))
    add("--repetitions", type=int, default=10, help="of each fault")
    add("--seed", type=int, default=0, help="of the choice of victims")
    add("--output", type=Path, default=RESULTS / "recovery.json", help="where to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
