"""What Ray Train calls in each worker; light, for the run's other processes load it too."""

from __future__ import annotations

from typing import Any

__all__ = ["train_worker"]


def train_worker(settings: dict[str, Any]) -> None:
    """Train as one worker of a partition group, see `mics_core.cluster.worker.work`.

    Args:
        settings: `config`, a `WorkerConfig`.
    """
    from mics_core.cluster.worker import work

    work(settings["config"])
