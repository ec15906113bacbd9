"""What the API's documentation shows as sent: the specification, and the id of its job."""

from __future__ import annotations

import textwrap
from typing import Any

__all__ = [
    "JOB_ID",
    "PLAN_EXAMPLE",
    "PLAN_EXAMPLE_YAML",
    "SPECIFICATION_EXAMPLE",
    "SPECIFICATION_EXAMPLE_YAML",
]

JOB_ID = "gpt2-tiny-1a2b3c4d"

SPECIFICATION_EXAMPLE: dict[str, Any] = {
    "name": "gpt2-tiny",
    "labels": {"team": "search"},
    "model": {"family": "gpt2", "hidden_size": 128, "num_layers": 4, "num_heads": 4},
    "data": {"kind": "text", "paths": ["/data/corpus/*.txt"]},
    "training": {
        "sequence_length": 128,
        "global_batch_size": 16,
        "micro_batch_size": 2,
        "steps": 1000,
        "optimizer": {"kind": "adamw", "learning_rate": 0.0003},
    },
    "partition_size": 2,
    "groups": {"minimum": 1, "wanted": 2, "maximum": 4},
    "checkpoint": {"directory": "/shared/checkpoints/gpt2-tiny"},
}

SPECIFICATION_EXAMPLE_YAML = """\
name: gpt2-tiny
labels: {team: search}
model:
  family: gpt2
  hidden_size: 128
  num_layers: 4
  num_heads: 4
data:
  kind: text
  paths: [/data/corpus/*.txt]
training:
  sequence_length: 128
  global_batch_size: 16
  micro_batch_size: 2
  steps: 1000
  optimizer:
    kind: adamw
    learning_rate: 0.0003
partition_size: 2
groups:
  minimum: 1
  wanted: 2
  maximum: 4
checkpoint:
  directory: /shared/checkpoints/gpt2-tiny
"""

PLAN_EXAMPLE: dict[str, Any] = {
    "job": SPECIFICATION_EXAMPLE,
    "cluster": "p4d.24xlarge",
    "nodes": 2,
}

PLAN_EXAMPLE_YAML = (
    f"cluster: p4d.24xlarge\nnodes: 2\njob:\n{textwrap.indent(SPECIFICATION_EXAMPLE_YAML, '  ')}"
)
