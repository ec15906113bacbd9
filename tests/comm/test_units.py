"""What the collectives of a unit do with memory that several streams of a GPU use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from mics_core.comm.units import ScatterScratch, UnitScatter


def test_memory_that_another_stream_reads_is_kept_until_it_has() -> None:
    """Stand-ins for a GPU's tensors: the race itself needs one, and some luck."""
    total, calls = mock.MagicMock(), []
    before = total.clone.return_value
    before.is_cuda = True
    total.numel.return_value = 4
    total.add_.side_effect = lambda _: calls.append("read")
    before.record_stream.side_effect = calls.append
    groups: Any = SimpleNamespace(grid=SimpleNamespace(num_workers=1))
    scatter = UnitScatter(
        "block",
        groups,
        "flat",
        "group",
        thread=None,
        scratch=ScatterScratch(),
        total=total,
        clear=lambda: None,
        done=lambda: None,
    )
    cpu = torch.device("cpu")
    for is_first in (True, False):
        scatter.begin_micro_batch(is_first=is_first, is_last=not is_first)
        scatter.allocate([4], dtype=torch.float32, device=cpu)  # of the input, in its own stream
        assert scatter.allocate([4], dtype=torch.float32, device=cpu) is total
        with mock.patch.object(torch.cuda, "current_stream", return_value="all-reduce stream"):
            scatter.add_alone(total)
    assert calls == ["read", "all-reduce stream"]
