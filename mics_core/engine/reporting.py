"""What one worker says of its part of a step, for the summary that all exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mics_core.engine.summary import Summary

__all__ = ["Report", "summary_of"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself in the summary of a step, beside what it has computed.

    Args: see `Summary`.
    """

    pending_generation: int
    checkpoint: float
    behind: float = 0.0
    full: float = 0.0


def summary_of(
    loss_sum: torch.Tensor | None, num_tokens: int, offsets: Sequence[int], report: Report
) -> Callable[[], list[float]]:
    """Return what computes a worker's summary: on a GPU it waits for the loss, so not at once.

    Args:
        loss_sum: Sum of the token losses; none if it took no micro-batches.
        num_tokens: Tokens that entered it.
        offsets: Places of the used samples in the global batch.
        report: What else it says.
    """
    return lambda: Summary(
        loss_sum=loss_sum.item() if loss_sum is not None else 0.0,
        num_tokens=num_tokens,
        num_samples=len(offsets),
        offset_sum=sum(offsets),
        offset_square_sum=sum(offset * offset for offset in offsets),
        pending_generation=report.pending_generation,
        checkpoint=report.checkpoint,
        behind=report.behind,
        full=report.full,
    ).as_vector()
