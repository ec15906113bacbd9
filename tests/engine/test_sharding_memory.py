"""No worker ever holds the whole model: what building the shards takes at its peak."""

from __future__ import annotations

import ctypes
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
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
SLACK_BYTES = 8 * 2**20
M_MMAP_THRESHOLD = -3  # malloc.h


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
    # Large blocks are given back once freed: what is counted is held, not kept for later use.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=SIZE)
    mesh = init_device_mesh("cpu", (SIZE,))
    options = ShardingOptions(torch.device("cpu"))
    # The libraries' own pages count as memory once touched: a small model touches them first.
    shard_model(_model(64, 2), mesh, options)
    model = _model(HIDDEN, NUM_BLOCKS)
    model_bytes = sum(parameter.nbytes for parameter in model.parameters())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory_bytes("VmRSS")
    sharded = shard_model(model, mesh, options)
    peak = _memory_bytes("VmHWM") - before
    shards = sum(4 * unit.num_elements for unit in sharded.units)
    largest = max(4 * SIZE * unit.num_elements for unit in sharded.units)
    pipe.send((model_bytes, largest, shards, peak))


def _model(hidden: int, num_blocks: int) -> nn.Module:
    shape = {"model__hidden_size": hidden, "model__num_layers": num_blocks, "model__num_heads": 8}
    return build_meta_model(small_job("text", **shape))


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
