"""What is looked at before a step is committed: all workers of all groups hold the same numbers.

So if something is wrong with them all fail before any update, and no checkpoint holds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mics_core.data.samples import IGNORED_LABEL
from mics_core.engine.summary import Share, Summary
from mics_core.errors import DataError, GroupFailedError
from mics_core.spec.job import CallableData, FileData, JobSpec

__all__ = ["check_step"]


def check_step(
    spec: JobSpec,
    step: int,
    total: Summary,
    groups: Sequence[Summary],
    shares: Sequence[Share],
    norm: float,
) -> None:
    """Check what the summaries of a step say, and the norm of its gradient.

    Args:
        spec: The job.
        step: Number of the step.
        total: The summary of all partition groups.
        groups: That of each.
        shares: What each group was to use of the global batch.
        norm: Norm of the whole gradient.

    Raises:
        GroupFailedError: A sample was used twice or left out, or the loss or the gradient is not
            finite.
        DataError: No sample of the step has a label.
    """
    batch_size = spec.training.global_batch_size
    whole = total.covers(Share((range(batch_size),)))
    parts = all(group.covers(share) for group, share in zip(groups, shares, strict=True))
    if not (whole and parts):
        raise GroupFailedError(
            f"Step {step} used {int(total.num_samples)} samples that are not the global batch"
            f" of {batch_size}, each once.",
            remedy="This is a fault of mics-elastic; please report it with the job's events.",
        )
    if not math.isfinite(total.loss_sum):
        raise GroupFailedError(
            f"The loss of step {step} is {total.loss_sum}: training has diverged.",
            remedy="Lower training.optimizer.learning_rate, add warm-up or gradient_clipping.",
        )
    if not total.num_tokens:
        raise DataError(
            f"None of the {int(total.num_samples)} samples of step {step}, from"
            f" {_source(spec.data)}, has a label: all are {IGNORED_LABEL}.",
            remedy="Leave out samples without labels, or raise training.global_batch_size.",
            field="data",
        )
    if not math.isfinite(norm):
        raise GroupFailedError(
            f"The gradient norm of step {step} is {norm}, while the loss is finite; the step"
            " was not applied.",
            remedy="Lower training.optimizer.learning_rate or add warm-up; if it comes in the"
            " first steps, look for an operation whose gradient is not finite, such as the"
            " square root of zero.",
        )


def _source(data: FileData | CallableData) -> str:
    return data.callable if isinstance(data, CallableData) else ", ".join(data.paths)
