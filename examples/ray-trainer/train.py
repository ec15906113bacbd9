"""A Ray script of one's own: `MicsTrainer` in the place of Ray's `TorchTrainer`.

    python examples/ray-trainer/train.py --storage /shared/runs

connects to the Ray cluster of RAY_ADDRESS, or of this machine, and trains to the end. Meanwhile the
job is listed by the service like any other: `mics list`, `mics watch ID`, `mics scale ID 2`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ray.train import CheckpointConfig, RunConfig, ScalingConfig

from mics_core.trainer import MicsTrainer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--storage", default="/tmp/mics-runs", help="seen by all nodes")
    options = parser.parse_args()

    trainer = MicsTrainer(
        # What is trained: the fields of a job, as in its YAML file.
        {
            "name": "ray-trainer",
            "model": {"family": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 2},
            "data": {"kind": "text", "paths": [str(HERE.parent / "**" / "*.py")]},
            "training": {
                "sequence_length": 64,
                "global_batch_size": 16,
                "micro_batch_size": 1,
                "steps": options.steps,
            },
            "partition_size": 1,
            "checkpoint": {"interval_steps": 100},
        },
        # On what: between one and two partition groups of one worker each.
        scaling_config=ScalingConfig(num_workers=(1, 2)),
        run_config=RunConfig(
            name="ray-trainer",
            storage_path=options.storage,
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    result = trainer.fit()

    print(f"{result.job_id} is {result.state}: {result.reason}")
    print(result.metrics_dataframe[["step", "loss", "tokens_per_s", "num_groups"]].tail(3))
    print(
        json.dumps(
            {
                "job_id": result.job_id,
                "state": result.state,
                "steps": len(result.metrics_history),
                "loss": result.metrics.get("loss"),
                "checkpoint": result.checkpoint_path,
            }
        )
    )
    if result.error is not None:
        raise SystemExit(str(result.error))


if __name__ == "__main__":
    main()
