"""The bits of a worker's model states, to compare workers of different groups."""

from __future__ import annotations

import hashlib

from mics_core.engine.state import state_tensors
from mics_core.engine.trainer import Trainer

__all__ = ["digest_of"]


def digest_of(trainer: Trainer) -> str:
    """Return the bits of all that a worker holds of the states."""
    digest = hashlib.sha256()
    for tensor in state_tensors(trainer.model, trainer.optimizer):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
