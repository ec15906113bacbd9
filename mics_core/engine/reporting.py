"""What a worker says of itself and of its micro-batches in the summary of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mics_core.engine.summary import Summary

__all__ = ["Progress", "Report", "summary_of"]


@dataclass(frozen=True, slots=True)
class Progress:
    """See the fields of `Summary` of these names."""

    behind: float
    is_full: float
    square_norm: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself in the summary of a step, beside what it has computed."""

    pending_generation: int
    checkpoint: float
    progress: Callable[[], Progress]


def summary_of(
    loss_sum: torch.Tensor | None, num_tokens: int, offsets: Sequence[int], report: Report
) -> Callable[[], list[float]]:
    """Return what computes a worker's summary: on a GPU it waits for the loss, so not at once."""

    def compute() -> list[float]:
        progress = report.progress()
        return Summary(
            loss_sum=loss_sum.item() if loss_sum is not None else 0.0,
            num_tokens=num_tokens,
            num_samples=len(offsets),
            first_offset=min(offsets, default=math.inf),
            offset_sum=sum(offsets),
            offset_square_sum=sum(offset * offset for offset in offsets),
            pending_generation=report.pending_generation,
            checkpoint=report.checkpoint,
            behind=progress.behind,
            is_full=progress.is_full,
            square_norm=progress.square_norm,
        ).as_vector()

    return compute
