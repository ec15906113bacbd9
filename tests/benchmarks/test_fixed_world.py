"""The engine's own loop in a world of worker processes, a block of steps at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks.harness.factory import WorldFactory
from benchmarks.harness.jobs import emulated_model, training_job, write_tokens
from benchmarks.harness.nodes import LOCAL_NODE
from benchmarks.harness.world import World


def test_two_worlds_in_turn_train_the_same_steps_and_wait_for_each_other(tmp_path: Path) -> None:
    spec = training_job(
        write_tokens(tmp_path, 1 << 10),
        emulated_model(width=16, num_layers=1, forward_s=0.0),
        global_batch_size=4,
        sequence_length=4,
    ).model_copy(update={"partition_size": 1})
    with (
        WorldFactory([LOCAL_NODE], tmp_path) as factory,
        World(factory, "fixed p=1", 2) as one,
        World(factory, "fixed p=1 again", 2) as other,
    ):
        for world in (one, other):
            built = world.build("fixed p=1", spec)
            assert built[0].description == "2 groups that never change"
        blocks = [world.block(3) for world in (one, other, one, other)]
    assert blocks[0].losses == blocks[1].losses
    assert blocks[2].losses == blocks[3].losses
    assert blocks[0].losses != blocks[2].losses
    times = [time for block in blocks for time in block.times_s]
    assert times == sorted(times)
    assert len(times) == 12
    assert all(block.processor_s > 0 for block in blocks)
