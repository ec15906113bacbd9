"""A user's data in which one sample can never be read, whoever tries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mics_core.data.order import sample_index


@dataclass(frozen=True)
class PoisonedSamples:
    """Args:
    num_samples: Samples of an epoch.
    sequence_length: Tokens of a sample.
    poisoned: Position in the order of the first epoch whose sample cannot be read.
    """

    num_samples: int
    sequence_length: int
    poisoned: int

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == sample_index(self.poisoned, self.num_samples, 0):
            raise ValueError(f"position {self.poisoned} of the data cannot be read")
        tokens = (index + np.arange(self.sequence_length + 1)) % 257
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


def build(**arguments: int) -> PoisonedSamples:
    return PoisonedSamples(**arguments)
