"""What a train worker is told; apart from the worker's code so that it pickles without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mics_core.planner.strategy import Strategy

__all__ = ["WorkerConfig"]


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know; the same for all workers of a partition group.

    Args:
        job_id: The job.
        group_id: The partition group.
        begins_run: Whether the group may start the run.
        spec: The specification as plain data.
        partition_size: Workers in the group.
        strategy: How the group moves its model states.
    """

    job_id: str
    group_id: int
    begins_run: bool
    spec: dict[str, Any]
    partition_size: int
    strategy: Strategy
