"""What one worker says of its part of a step, for the summary that all exchange."""

from __future__ import annotations

from collections.abc import Sequence
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
    loss_sum: torch.Tensor, num_tokens: int, offsets: Sequence[int], report: Report
) -> list[float]:
    """Return a worker's summary as it travels; on a GPU this waits for the loss.

    Args:
        loss_sum: Sum of the token losses.
        num_tokens: Tokens that entered it.
        offsets: Places of the used samples in the global batch.
        report: What else it says.
    """
    return Summary(
        loss_sum=loss_sum.item(),
        num_tokens=num_tokens,
        num_samples=len(offsets),
        offset_sum=sum(offsets),
        offset_square_sum=sum(offset * offset for offset in offsets),
        pending_generation=report.pending_generation,
        checkpoint=report.checkpoint,
        behind=report.behind,
        full=report.full,
    ).as_vector()
