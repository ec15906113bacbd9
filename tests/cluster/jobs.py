"""The jobs of the cluster tests, and the losses that each must show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.miniature.points import FailAt
from mics_core.spec import JobSpec, parse_job_spec
from tests.cluster.recording_data import VOCABULARY
from tests.engine.jobs import train_in_one_process

GLOBAL_BATCH_SIZE = 12
SEQUENCE_LENGTH = 16


def recorded_job(
    folder: Path | None,
    steps: int,
    *,
    determinism: str = "relaxed",
    faults: Sequence[FailAt] = (),
    **changes: Any,
) -> JobSpec:
    """A user's model over a user's data, both steered by the `Control` of a folder.

    Args:
        folder: Empty, seen by all workers; none to neither steer nor record.
        steps: Steps of the run.
        determinism: Whether the parameters are the same to the bit for every number of groups.
        faults: What befalls its workers.
        changes: Other fields of the specification.
    """
    steered_by = None if folder is None else str(folder)
    job: dict[str, Any] = {
        "name": "recorded",
        "model": {
            "callable": "tests.cluster.user_model:build",
            "arguments": {
                "folder": steered_by,
                "vocabulary": VOCABULARY,
                "sequence_length": SEQUENCE_LENGTH,
            },
        },
        "data": {
            "callable": "tests.cluster.recording_data:build",
            "arguments": {
                "folder": steered_by,
                "steps": steps,
                "global_batch_size": GLOBAL_BATCH_SIZE,
                "sequence_length": SEQUENCE_LENGTH,
            },
        },
        "training": {
            "sequence_length": SEQUENCE_LENGTH,
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "micro_batch_size": 1,
            "steps": steps,
            "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9},
            "gradient_clipping": 1.0,
            "determinism": determinism,
        },
        "partition_size": 2,
        "groups": {"minimum": 1, "wanted": 2, "maximum": 3},
    }
    if faults:
        job["model"]["callable"] = "tests.cluster.faulty_model:build"
        job["model"]["arguments"]["faults"] = [asdict(fault) for fault in faults]
    return parse_job_spec(job | changes)


@cache
def gold_losses(steps: int) -> list[float]:
    """Return the losses of a whole `recorded_job` in one plain process: no Ray, shards, groups."""
    return train_in_one_process(recorded_job(None, steps)).losses
