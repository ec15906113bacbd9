"""No worker ever holds the whole model: what building the shards takes at its peak."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.harness.processes import process_context
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, shard_model
from tests.engine.jobs import small_job

SIZE = 8
NUM_BLOCKS = 24
# Twelve h² numbers a block: 12 MiB in fp32, and 288 MiB in all blocks.
HIDDEN = 512
SLACK_BYTES = 32 * 2**20


def test_building_shards_takes_the_shards_and_one_whole_unit() -> None:
    context = process_context()
    mine, theirs = context.Pipe()
    process = context.Process(target=_build, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert mine.poll(120), "the process has not answered within 120 s"
    model_bytes, unit_bytes, shard_bytes, peak_bytes = mine.recv()
    process.join(10)
    assert shard_bytes <= peak_bytes, "the peak was not seen"
    assert peak_bytes <= shard_bytes + unit_bytes + SLACK_BYTES
    assert shard_bytes + unit_bytes + SLACK_BYTES < model_bytes / 3


def _build(pipe: Connection) -> None:
    """Shard a model as one of eight workers: building it needs no word from the others."""
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=SIZE)
    mesh = init_device_mesh("cpu", (SIZE,))
    shape = {"model__hidden_size": HIDDEN, "model__num_layers": NUM_BLOCKS, "model__num_heads": 8}
    model = build_meta_model(small_job("text", **shape))
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory_bytes("VmRSS")
    sharded = shard_model(model, mesh, ShardingOptions(torch.device("cpu")))
    peak = _memory_bytes("VmHWM") - before
    shards = sum(4 * unit.num_elements for unit in sharded.units)
    largest = max(4 * SIZE * unit.num_elements for unit in sharded.units)
    pipe.send((model_bytes, largest, shards, peak))


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
