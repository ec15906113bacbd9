"""The jobs of the cluster tests, and the losses that each must show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mics_core.spec import JobSpec, parse_job_spec
from tests.cluster.recording_data import VOCABULARY
from tests.engine.jobs import train_in_one_process

GLOBAL_BATCH_SIZE = 12
SEQUENCE_LENGTH = 16


def recorded_job(
    folder: Path, steps: int, *, model_can_fail: bool = False, **changes: Any
) -> JobSpec:
    """A two-block model over `RecordingSamples`, held back by the `Control` of `folder`.

    Args:
        folder: Empty, seen by all workers.
        steps: Steps of the run.
        model_can_fail: Take the user's model that the `Control` can make fail.
        changes: Other fields of the specification.
    """
    job: dict[str, Any] = {
        "name": "recorded",
        # 66 and the 257 ids of bytes divide by neither 4 nor 2 x 2.
        "model": {"family": "gpt2", "hidden_size": 66, "num_layers": 2, "num_heads": 3},
        "data": {
            "callable": "tests.cluster.recording_data:build",
            "arguments": {
                "folder": str(folder),
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
            "optimizer": {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9},
            "gradient_clipping": 1.0,
        },
        "partition_size": 2,
        "groups": {"minimum": 1, "wanted": 2, "maximum": 3},
    }
    if model_can_fail:
        job["model"] = {
            "callable": "tests.cluster.failing_model:build",
            "arguments": {
                "folder": str(folder),
                "vocabulary": VOCABULARY,
                "sequence_length": SEQUENCE_LENGTH,
            },
        }
    return parse_job_spec(job | changes)


def gold_losses(spec: JobSpec, steps: int | None = None) -> list[float]:
    """Return the losses of the same job in one plain process: no Ray, no shards, no groups.

    Args:
        spec: A job of this module.
        steps: Train only the first steps; the data are those of the whole run.
    """
    job = spec.model_dump(mode="json")
    job["data"]["arguments"]["folder"] = None
    if "callable" in job["model"]:
        job["model"]["arguments"]["folder"] = "/nonexistent"
    job["training"]["steps"] = steps or spec.training.steps
    return train_in_one_process(parse_job_spec(job)).losses
