"""The specification that the API's documentation shows."""

from __future__ import annotations

from typing import Any

__all__ = ["SPECIFICATION_EXAMPLE", "SPECIFICATION_EXAMPLE_YAML"]

SPECIFICATION_EXAMPLE: dict[str, Any] = {
    "name": "gpt2-tiny",
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
}

SPECIFICATION_EXAMPLE_YAML = """\
name: gpt2-tiny
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
"""
