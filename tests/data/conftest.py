"""Small jobs over files in a temporary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from example_jobs import BuildJob

from mics_core.spec import JobSpec, parse_job_spec


@pytest.fixture
def build_job(tmp_path: Path) -> BuildJob:
    """Builds a job over `tmp_path`/`files`, or over `data`."""

    def build(
        kind: str = "text",
        files: str = "*",
        *,
        length: int = 4,
        objective: str = "causal",
        vocab_size: int | None = None,
        tokenizer: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        **options: Any,
    ) -> JobSpec:
        sizes = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "vocab_size": vocab_size}
        return parse_job_spec(
            {
                "name": "example",
                "model": model or {"family": "gpt2", **sizes},
                "data": data or {"kind": kind, "paths": [str(tmp_path / files)], **options},
                "tokenizer": tokenizer or {},
                "training": {
                    "sequence_length": length,
                    "global_batch_size": 12,
                    "micro_batch_size": 1,
                    "steps": 1,
                    "objective": objective,
                },
            }
        )

    return build
