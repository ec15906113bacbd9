"""What of the GPU benchmark can be held without a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import gpu
from benchmarks.harness.losses import largest_difference


@pytest.mark.parametrize(
    ("expected", "losses", "largest"),
    [
        ([2.0, 2.0], [2.0, 2.0], 0.0),
        ([2.0, 4.0, 1.0], [2.0, 3.0, 1.0], 0.25),  # not the last step
        ([2.0, -4.0], [2.0, -3.0], 0.25),
    ],
)
def test_the_largest_difference_is_that_of_any_step(
    expected: list[float], losses: list[float], largest: float
) -> None:
    assert largest_difference(expected, losses) == largest


@pytest.mark.parametrize("losses", [[math.nan, 2.0], [2.0, math.nan]])
def test_a_loss_that_is_no_number_is_no_agreement(losses: list[float]) -> None:
    assert not largest_difference([2.0, 2.0], losses) <= gpu.LOSS_TOLERANCE
    assert not largest_difference(losses, [2.0, 2.0]) <= gpu.LOSS_TOLERANCE


def test_it_is_skipped_with_the_reason_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 0
    assert capsys.readouterr().out == "skipped: no CUDA device\n"
