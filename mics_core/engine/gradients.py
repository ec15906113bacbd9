"""The gradient of a step: one flat buffer of this worker's shards, unit by unit.

Units stand in the order in which backward completes them: blocks from last to first, then what is
outside the blocks. Micro-batches add up in the buffer, and the second hop sends slices of it: a
bucket is a run of whole units, so nothing is copied into or out of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mics_core.comm.shared import SharedMemory

__all__ = ["Bucket", "GradientBuffer", "UnitLayout", "lay_out_units", "shard_elements"]

_PADDING = 1680
"""Buckets are padded to a multiple of this many numbers, so that they split evenly over 2 to 8, 10,
12, 14, 15 or 16 workers of a node."""
_NORM_ROW = 1024


@dataclass(frozen=True, slots=True)
class UnitLayout:
    """Where a unit's gradient is in the buffer.

    Args:
        name: The unit's module; empty for what is outside the blocks.
        offset: First number.
        num_elements: Numbers of this worker's shard, FSDP2's padding included.
        bucket: Index of the bucket that sends it.
    """

    name: str
    offset: int
    num_elements: int
    bucket: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """A run of whole units that crosses the replication group at once.

    Args:
        units: Indices of its units.
        offset: First number in the buffer.
        num_elements: Numbers, padding included.
    """

    units: range
    offset: int
    num_elements: int


def lay_out_units(
    units: Sequence[tuple[str, int]], bucket_elements: int
) -> tuple[list[UnitLayout], list[Bucket]]:
    """Place units one after the other and cut the row into buckets.

    Args:
        units: Name and shard size of each unit, in the order in which backward completes them.
        bucket_elements: A bucket is closed as soon as it holds at least so many numbers and
            further ones follow.
    """
    layouts: list[UnitLayout] = []
    buckets: list[Bucket] = []
    first, start, end = 0, 0, 0
    last_of_numbers = max((place for place, (_, count) in enumerate(units) if count), default=-1)
    for index, (name, num_elements) in enumerate(units):
        layouts.append(UnitLayout(name, end, num_elements, len(buckets)))
        end += num_elements
        # Units without trainable numbers, if they come last, get no bucket of their own.
        is_full = end - start >= bucket_elements and index < last_of_numbers
        if is_full or index == len(units) - 1:
            end = start + math.ceil((end - start) / _PADDING) * _PADDING
            buckets.append(Bucket(range(first, index + 1), start, end - start))
            first, start = index + 1, end
    return layouts, buckets


class GradientBuffer:
    """The flat buffer and its parts.

    Args:
        units: Name and shard size of each unit, in the order in which backward completes them.
        dtype: Type of the gradient.
        device: Where it lives.
        bucket_bytes: Smallest size of a bucket but the last.
    """

    def __init__(
        self,
        units: Sequence[tuple[str, int]],
        *,
        dtype: torch.dtype,
        device: torch.device,
        bucket_bytes: int,
    ):
        self.units, self.buckets = lay_out_units(units, max(1, bucket_bytes // dtype.itemsize))
        last = self.buckets[-1] if self.buckets else Bucket(range(0), 0, 0)
        # Zeros, because padding is summed and squared along with the rest.
        num_elements = last.offset + last.num_elements
        self.memory = (
            _shared_memory(num_elements * dtype.itemsize) if device.type == "cpu" else None
        )
        """What holds the buffer, where other workers of the node can read it."""
        if self.memory is not None:
            self.flat = self.memory.bytes.view(dtype)
        else:
            self.flat = torch.zeros(num_elements, dtype=dtype, device=device)

    def of_unit(self, index: int) -> torch.Tensor:
        """Return a unit's part of the buffer, as a tensor with a storage of its own.

        FSDP2 counts its views from the storage's beginning, not from the tensor's.
        """
        unit = self.units[index]
        part = self.flat[unit.offset : unit.offset + unit.num_elements]
        return torch.utils.dlpack.from_dlpack(part) if unit.num_elements else part

    def of_bucket(self, index: int) -> torch.Tensor:
        """Return a bucket's part of the buffer."""
        bucket = self.buckets[index]
        return self.flat[bucket.offset : bucket.offset + bucket.num_elements]

    def square_norm(self) -> float:
        """Return the squared norm: of short rows in the buffer's precision, of rows in double.

        A norm of the whole buffer in double would first write it out in double, 30 times slower;
        rows of 1024 numbers lose nothing that matters (1e-9 of the norm).
        """
        whole = self.flat.numel() // _NORM_ROW * _NORM_ROW
        rows = self.flat[:whole].view(-1, _NORM_ROW), self.flat[whole:].view(1, -1)
        norms = [torch.linalg.vector_norm(part, dim=1).double() for part in rows]
        return float(torch.cat(norms).square().sum())


def _shared_memory(num_bytes: int) -> SharedMemory | None:
    try:
        return SharedMemory(num_bytes) if num_bytes else None
    except OSError:
        return None


def shard_elements(parameters: Sequence[nn.Parameter], partition_size: int) -> int:
    """Return the numbers of one shard of a unit: FSDP2 cuts the first dimension, rounded up."""
    return sum(
        math.ceil(parameter.shape[0] / partition_size) * math.prod(parameter.shape[1:])
        for parameter in parameters
        if parameter.requires_grad
    )
