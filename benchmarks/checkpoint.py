"""Measures what checkpoints cost the steps beside them: `python -m benchmarks.checkpoint`.

The same run in turn with and without a checkpoint every 20 steps, as the engine writes them: all
groups together, in the background. Compute is emulated, so that the processor has time to write, as
beside a GPU. Without Ray (`benchmarks.miniature`), which takes no part in a checkpoint.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.table import Table

from benchmarks.harness.goals import Bound, Goal, add_strict, as_facts, judge
from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.miniature.run import Miniature
from mics_core.spec import JobSpec
from mics_core.spec.job import CheckpointSpec

PARTITION_SIZE = 2
NUM_GROUPS = 2
GLOBAL_BATCH_SIZE = 4
LAYERS, WIDTH = 8, 1024
FORWARD_S = 0.02
INTERVAL = 20
WARM_UP = 5
GOAL = 0.02


def main() -> int:
    """Train in turn with and without checkpoints; show and write the difference, see `judge`."""
    options = _parse()
    console = build_console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    turns: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        tokens = write_tokens(Path(name))
        for turn in range(options.turns):
            folders = [None, Path(name) / f"checkpoints-{turn}"]
            order = folders if turn % 2 else folders[::-1]
            took = {folder: _step_s(tokens, folder, options.steps) for folder in order}
            turns.append((took[None], took[folders[1]]))
            console.print(f"turn {turn}: {turns[-1][0]:.4f} s without, {turns[-1][1]:.4f} s with")
        num_bytes = sum(file.stat().st_size for file in _newest(folders[1]).rglob("*.distcp"))
    row = row_of(turns, num_bytes)
    goals = goals_of(row)
    table = Table(title=f"A checkpoint every {INTERVAL} steps", title_justify="left")
    for heading in row:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:.4g}" for value in row.values()))
    console.print(table)
    write_results(options.output, [row], goals=as_facts(goals), turns=turns, emulated=_MODEL)
    status = judge(console, goals, strict=options.strict)
    console.print(f"written to {options.output}")
    return status


def row_of(turns: Sequence[tuple[float, float]], num_bytes: int) -> dict[str, Any]:
    """Sum up the turns.

    Args:
        turns: The mean step of each, without and with checkpoints.
        num_bytes: Of a checkpoint.
    """
    costs = [written / without - 1.0 for without, written in turns]
    return {
        "interval_steps": INTERVAL,
        "checkpoint_bytes": num_bytes,
        "step_s_without": median(without for without, _ in turns),
        "step_s_with": median(written for _, written in turns),
        "cost_median": median(costs),
        "cost_min": min(costs),
        "cost_max": max(costs),
    }


def goals_of(row: Mapping[str, Any]) -> list[Goal]:
    """Return the benchmark's goals."""
    name = f"a checkpoint every {INTERVAL} steps, share of step time"
    return [Goal(name, GOAL, row["cost_median"], bound=Bound.BELOW)]


_MODEL = emulated_model(WIDTH, LAYERS, FORWARD_S)


def _job(tokens: Path, folder: Path | None, steps: int) -> JobSpec:
    spec = training_job(
        tokens, _MODEL, global_batch_size=GLOBAL_BATCH_SIZE, sequence_length=4, steps=steps
    )
    changes: dict[str, Any] = {"partition_size": PARTITION_SIZE}
    if folder is not None:
        changes["checkpoint"] = CheckpointSpec(directory=str(folder), interval_steps=INTERVAL)
    return spec.model_copy(update=changes)


def _step_s(tokens: Path, folder: Path | None, steps: int) -> float:
    """Return the mean step over whole intervals: each has one checkpoint in it, or none.

    The last checkpoint, at the end of a run, falls after the last step that counts.
    """
    with Miniature(_job(tokens, folder, WARM_UP + steps + 1), PARTITION_SIZE, NUM_GROUPS) as run:
        run.finish()
        committed = [step.time for step in run.steps]
        written = [checkpoint for checkpoint in run.checkpoints if not checkpoint.error]
    expected = 0 if folder is None else steps // INTERVAL
    if len(written) < expected:
        raise RuntimeError(f"{len(written)} checkpoints were written, not {expected}")
    return fmean(
        later - earlier for earlier, later in pairwise(committed[WARM_UP : WARM_UP + steps])
    )


def _newest(folder: Path | None) -> Path:
    assert folder is not None
    return max(
        (path for path in folder.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    add = parser.add_argument
    add("--turns", type=int, default=6, help="runs of each kind")
    add("--steps", type=int, default=60, help="steps of a run that count")
    add_strict(parser)
    add("--output", type=Path, default=RESULTS / "checkpoint.json", help="where to write them")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
