"""The second hop over copies in the host's memory, as of a GPU's buffer, and one that breaks."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from mics_core.comm.replication import ReplicationGroup
from mics_core.engine import second_hop
from mics_core.engine.gradients import GradientBuffer
from mics_core.engine.second_hop import SecondHop
from mics_core.errors import ReplicationError


class Doubling:
    """Stands for a replication group of two that hold the same gradient."""

    size = 2

    def __init__(self, own: torch.Tensor):
        self._own = own.untyped_storage().data_ptr()
        self.stages: list[tuple[int, int]] = []

    def gather_doubles(self, values: list[float]) -> list[list[float]]:
        return [values, values]

    def run_stage(self, stage: int, flat: torch.Tensor) -> None:
        assert flat.untyped_storage().data_ptr() != self._own, "it would send from a GPU's memory"
        self.stages.append((stage, flat.numel()))
        if stage == 1:
            flat.mul_(2.0)

    def end_reading(self) -> None:
        assert len(self.stages) % second_hop.NUM_STAGES == 0, "a bucket is still under way"


def test_a_gpus_buckets_cross_in_the_hosts_memory_and_come_back() -> None:
    units = [("blocks.1", 5000), ("blocks.0", 3000), ("", 100)]
    buffer = GradientBuffer(
        units, dtype=torch.float32, device=torch.device("cpu"), bucket_bytes=4 * 2000
    )
    assert len(buffer.buckets) > 1
    hop = SecondHop(buffer)
    hop._copies = second_hop._HostCopies(buffer)  # as for a buffer on a GPU
    group = Doubling(buffer.flat)
    try:
        for turn in range(2):
            buffer.flat.copy_(torch.arange(float(buffer.flat.numel())) + turn)
            hop.begin(cast("ReplicationGroup", group), lambda: [1.0])
            hop.unit_complete(0)
            rows, error = hop.finish()
            assert (rows, error) == ([[1.0], [1.0]], "")
            expected = 2.0 * (torch.arange(float(buffer.flat.numel())) + turn)
            assert torch.equal(buffer.flat, expected)
    finally:
        hop.close()
    assert len(group.stages) == 2 * second_hop.NUM_STAGES * len(buffer.buckets)


class Breaking(Doubling):
    """Breaks in the last stage of the second bucket, when the first is through."""

    def run_stage(self, stage: int, flat: torch.Tensor) -> None:
        flat.mul_(2.0)
        self.stages.append((stage, flat.numel()))
        if stage == second_hop.NUM_STAGES - 1 and flat.numel() != self.stages[0][1]:
            raise ReplicationError("A member is gone.")


@pytest.mark.parametrize("is_on_gpu", [False, True])
def test_a_gradient_whose_hop_broke_comes_back_as_it_was(is_on_gpu: bool) -> None:
    units = [("blocks.1", 5000), ("blocks.0", 3000), ("", 100)]
    buffer = GradientBuffer(
        units, dtype=torch.float32, device=torch.device("cpu"), bucket_bytes=4 * 2000
    )
    hop = SecondHop(buffer)
    hop._copies = second_hop._HostCopies(buffer) if is_on_gpu else None
    hop.keep_gradients()
    mine = torch.arange(float(buffer.flat.numel()))
    elsewhere = torch.empty(0)
    try:
        for turn in range(2):
            buffer.flat.copy_(mine + turn)
            hop.begin_step([[0]], goes_on=False)
            hop.begin(cast("ReplicationGroup", Breaking(elsewhere)), lambda: [1.0])
            _, error = hop.finish()
            assert error == "A member is gone."
            assert not torch.equal(buffer.flat, mine + turn)
            hop.begin_step([[0]], goes_on=True)
            assert torch.equal(buffer.flat, mine + turn)
            # What is in hand grows before it crosses again, and nothing of an old hop comes back.
            buffer.flat.add_(1.0)
            hop.begin_step([[0]], goes_on=True)
            assert torch.equal(buffer.flat, mine + turn + 1.0)
            hop.begin(cast("ReplicationGroup", Doubling(elsewhere)), lambda: [1.0])
            assert hop.finish()[1] == ""
            assert torch.equal(buffer.flat, 2.0 * (mine + turn + 1.0))
    finally:
        hop.close()
