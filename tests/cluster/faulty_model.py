"""The user's model of `user_model`, whose workers bring along the faults declared for them.

A fault is part of the job and names its worker by group and rank. No group's number is ever used
twice, so nobody who replaces a victim is one; and a mark beside the job sees to it that each fault
befalls one process, and tells the test that it did.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
from torch import nn

from benchmarks.miniature.points import FailAt, arm
from tests.cluster import user_model

__all__ = ["Marks", "build"]


class Marks:
    """The faults that have befallen workers of a job.

    Args:
        folder: Shared by the test and all workers.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)

    def take(self, fault: FailAt) -> bool:
        """Note that a fault befalls this process; whether it is the first."""
        try:
            with self._path(fault).open("x") as mark:
                mark.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True

    def pid(self, fault: FailAt) -> int | None:
        """Return the process that a fault befell; none if it has not."""
        try:
            return int(self._path(fault).read_text() or 0) or None
        except FileNotFoundError:
            return None

    def _path(self, fault: FailAt) -> Path:
        phase = fault.phase.replace(" ", "-")
        return self._folder / f"befell-{fault.group}.{fault.rank}-{phase}"


def build(
    folder: str, vocabulary: int, sequence_length: int, faults: Sequence[dict[str, Any]]
) -> nn.Module:
    """Build the model; a worker that is a victim is one from now on.

    Args:
        folder: Of the job's `Control` and `Marks`.
        vocabulary: Number of tokens.
        sequence_length: Tokens of a sample.
        faults: Fields of each `FailAt` of the job.
    """
    declared = [FailAt(**fault) for fault in faults]
    place = _place()
    mine = [fault for fault in declared if (fault.group, fault.rank) == place]
    arm(mine, Marks(folder).take)
    return user_model.build(folder, vocabulary, sequence_length)


def _place() -> tuple[int, int] | None:
    """Return the group and the rank of this worker; none in a process that is no worker."""
    try:
        context = ray.train.get_context()
    except RuntimeError:
        return None
    _, group = context.get_experiment_name().rsplit("-group-", 1)
    return int(group), context.get_world_rank()
