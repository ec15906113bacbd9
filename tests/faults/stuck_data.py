"""A user's data source that stops returning samples to processes that the test names."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

import numpy as np

VOCABULARY = 257


class Sticky:
    """Counting sequences.

    Args:
        folder: Where the test names processes.
        sequence_length: Tokens of a sample.
    """

    def __init__(self, folder: str, sequence_length: int):
        self._folder = Path(folder)
        self._sequence_length = sequence_length

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if _sign(self._folder, os.getpid()).exists():
            Event().wait()
        tokens = (index + (1 + index % 3) * np.arange(self._sequence_length + 1)) % VOCABULARY
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


def build(folder: str, sequence_length: int) -> Sticky:
    return Sticky(folder, sequence_length)


def stick(folder: Path, pid: int) -> None:
    """Let a process wait for ever for its next sample."""
    _sign(folder, pid).touch()


def _sign(folder: Path, pid: int) -> Path:
    return folder / f"stuck-{pid}"
