"""Measures a worker's peak memory against `model_states / p`: `python -m benchmarks.memory`.

One partition group of p workers on this machine builds a model of about 100 million parameters from
the meta device and trains a few steps. What counts is the growth of resident memory over what the
process held before, imports and a first small model included.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.factory import WorldFactory
from benchmarks.harness.jobs import VOCAB_SIZE, gpt2, training_job, write_tokens
from benchmarks.harness.nodes import LOCAL_NODE
from benchmarks.harness.output import RESULTS, build_console, write_results
from benchmarks.harness.world import World
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import block_names
from mics_core.spec import JobSpec

SIZES = (1, 2, 4)
STATE_BYTES = 16
"""Of a parameter in fp32 with AdamW: itself, its gradient and two moments."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
"""Has glibc give freed tensors back at once. Its arenas otherwise keep up to three times what is in
use here, and that would be measured instead of the training."""
MODEL = gpt2(hidden_size=768, num_layers=14, num_heads=12, vocab_size=VOCAB_SIZE)
FIRST_MODEL = gpt2(hidden_size=96, num_layers=2, num_heads=2, vocab_size=VOCAB_SIZE)


def main() -> int:
    """Measure every partition size, show and write the results."""
    options = _parse()
    console = build_console()
    # An end by `kill` still ends the workers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mics-bench-") as name:
        folder = Path(name)
        with WorldFactory([LOCAL_NODE], folder, variables=ALLOCATOR) as factory:
            rows = [_measure(factory, folder, size, options.steps) for size in options.sizes]
    _show(console, rows)
    write_results(options.output, rows, model=MODEL, steps=options.steps)
    console.print(f"written to {options.output}")
    return 0


def _measure(factory: WorldFactory, folder: Path, size: int, num_steps: int) -> dict[str, Any]:
    """Train one partition group of `size` workers and return its row."""
    system, tokens = f"mics p={size}", write_tokens(folder)
    first, spec = (
        training_job(tokens, model, global_batch_size=size) for model in (FIRST_MODEL, MODEL)
    )
    num_parameters, largest_unit = _count(spec)
    with World(factory, system, size) as world:
        # Loads the code that training touches, so that it is part of the baseline.
        world.build(system, first)
        world.step(0)
        world.drop()
        built = world.build(system, spec)
        steps = [world.step(index) for index in range(num_steps)]
    baseline = min(answer.baseline_rss_bytes for answer in built)
    building = max(answer.peak_rss_bytes for answer in built) - baseline
    training = max(step.peak_rss_bytes for step in steps) - baseline
    share = num_parameters * STATE_BYTES // size
    return {
        "system": system,
        "partition_size": size,
        "num_parameters": num_parameters,
        "model_states_per_worker_bytes": share,
        "largest_unit_bytes": largest_unit * 4,
        "peak_building_bytes": building,
        "peak_training_bytes": training,
        "peak_over_model_states": max(building, training) / share,
    }


def _count(spec: JobSpec) -> tuple[int, int]:
    """Return the parameters of the model and of its largest block."""
    model = build_meta_model(spec)
    blocks = [model.get_submodule(name) for name in block_names(model)]
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    return sum(parameter.numel() for parameter in model.parameters()), max(sizes)


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(title="Peak memory of a worker, MB over the baseline", title_justify="left")
    headings = ("p", "model states / p", "largest block", "building", "training", "peak / states")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row["partition_size"]),
            f"{row['model_states_per_worker_bytes'] / 1e6:.0f}",
            f"{row['largest_unit_bytes'] / 1e6:.0f}",
            f"{row['peak_building_bytes'] / 1e6:.0f}",
            f"{row['peak_training_bytes'] / 1e6:.0f}",
            f"{row['peak_over_model_states']:.2f}",
        )
    console.print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=_numbers, default=list(SIZES), help="partition sizes, such as 1,2,4")
    add("--steps", type=int, default=3, help="steps to train")
    add("--output", type=Path, default=RESULTS / "memory.json", help="where to write the results")
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
