"""The job of the demonstration: a small GPT-2 on the source files of Python's standard library."""

from __future__ import annotations

import sysconfig

from mics_core.spec import JobSpec, parse_job_spec


def demo_job(steps: int) -> JobSpec:
    """About 1.3 million parameters, byte tokens, partition size 2."""
    return parse_job_spec(
        {
            "name": "demo",
            "model": {"family": "gpt2", "hidden_size": 128, "num_layers": 6, "num_heads": 4},
            "data": {"kind": "text", "paths": [f"{sysconfig.get_paths()['stdlib']}/*.py"]},
            "training": {
                "sequence_length": 64,
                "global_batch_size": 24,
                "micro_batch_size": 2,
                "steps": steps,
                "optimizer": {"kind": "adamw", "learning_rate": 2e-3},
                "schedule": {"kind": "cosine", "warmup_steps": 10, "final_fraction": 0.1},
                "gradient_clipping": 1.0,
                "seed": 7,
            },
            "partition_size": 2,
            "groups": {"minimum": 1, "wanted": 2, "maximum": 3},
        }
    )
