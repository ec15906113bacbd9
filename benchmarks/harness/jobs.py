"""The training that a benchmark gives to all systems, as a job specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mics_core.spec import JobSpec, parse_job_spec

__all__ = ["VOCAB_SIZE", "emulated_model", "gpt2", "training_job", "write_tokens"]

VOCAB_SIZE = 512


def write_tokens(folder: Path, num_tokens: int = 1 << 20, *, vocab_size: int = VOCAB_SIZE) -> Path:
    """Write ids below `vocab_size` that a model can learn: each is a little above the last."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 8, num_tokens)
    tokens = np.cumsum(noise) * 3 % vocab_size
    path = folder / "tokens.npy"
    np.save(path, tokens.astype(np.uint16))
    return path


def gpt2(hidden_size: int, num_layers: int, num_heads: int, vocab_size: int) -> dict[str, Any]:
    """Return the `model` part of a GPT-2."""
    return {
        "family": "gpt2",
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "vocab_size": vocab_size,
    }


def emulated_model(
    width: int, num_layers: int, forward_s: float, *, vocab_size: int = VOCAB_SIZE
) -> dict[str, Any]:
    """Return the `model` part of a model whose layers take a stated time.

    Args:
        width: See `benchmarks.harness.emulated.build_emulated`.
        num_layers: See there.
        forward_s: See there; a layer's backward takes twice as long.
        vocab_size: See there.
    """
    return {
        "callable": "benchmarks.harness.emulated:build_emulated",
        "arguments": {
            "vocab_size": vocab_size,
            "width": width,
            "num_layers": num_layers,
            "forward_s": forward_s,
            "backward_s": 2 * forward_s,
        },
    }


def training_job(
    tokens: Path,
    model: dict[str, Any],
    *,
    global_batch_size: int,
    sequence_length: int = 64,
    **training: Any,
) -> JobSpec:
    """Return a job with AdamW, in fp32 unless `training` says otherwise.

    Args:
        tokens: File of token ids.
        model: The specification's `model` part.
        global_batch_size: Samples in a step.
        sequence_length: Tokens of a sample.
        training: Further fields of the `training` part; a worker takes one sample at a time
            unless `micro_batch_size` is among them.
    """
    return parse_job_spec(
        {
            "name": "benchmark",
            "model": model,
            "data": {"kind": "tokens", "paths": [str(tokens)]},
            "training": {
                "sequence_length": sequence_length,
                "global_batch_size": global_batch_size,
                "micro_batch_size": 1,
                "steps": 100_000,
                "optimizer": {"kind": "adamw", "learning_rate": 3e-4},
                **training,
            },
        }
    )
