"""What a sample is, and what every source of samples offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORED_LABEL", "Int64Array", "Sample", "Samples"]

Int64Array = NDArray[np.int64]

IGNORED_LABEL = -100
"""Label of a token that does not enter the loss, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training sample of L = sequence_length tokens. All arrays are int64 of shape (L,)."""

    input_ids: Int64Array
    """Token ids."""
    labels: Int64Array
    """What the model should say at each token, already shifted; `IGNORED_LABEL` for no loss."""
    attention_mask: Int64Array | None = None
    """1 where attention may look, 0 for padding; none where all tokens are real."""


class Samples(Protocol):
    """A sized collection of samples that is the same in every process that builds it."""

    def __len__(self) -> int:
        """Return the number of samples, at least 1."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """Return one sample; `index` is in range(len(self))."""
        ...
