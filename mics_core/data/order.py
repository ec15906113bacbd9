"""The order of the data: which sample is used when, as arithmetic on positions.

Training consumes one endless sequence of positions. Position q = step · global_batch_size + j is
the j-th sample of a step; it belongs to epoch q // num_samples, and each epoch is a permutation of
the samples. Both depend on nothing but the seed, so every worker computes its own part with no
message, no state and O(1) memory, and the global batch of a step is the same for every number of
partition groups.

The permutation is a Feistel network over the smallest square that holds the epoch, with cycle
walking back into it: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002,
section 5 (generalised Feistel) and section 4 (cycle walking). Its round function is the output
function of SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators",
OOPSLA 2014.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isqrt

__all__ = [
    "MicroBatch",
    "divide_what_is_left",
    "micro_batch_of_step",
    "micro_batches_of_group",
    "positions_of_worker",
    "sample_index",
    "stream_seed",
]

_NUM_ROUNDS = 8
_MASK_64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One micro-batch of a partition group: consecutive positions of the endless sequence."""

    index: int
    """Number of the micro-batch inside its step, from 0."""
    first_position: int
    """Position of its first sample."""
    num_samples: int
    """Samples in it: partition_size · micro_batch_size."""


def sample_index(position: int, num_samples: int, seed: int) -> int:
    """Return the sample that stands at a position of the endless sequence.

    Inside an epoch this is a bijection of range(num_samples); a new epoch is a new permutation.

    Args:
        position: Position q ≥ 0, step · global_batch_size + offset in the step.
        num_samples: Samples in the collection, at least 1.
        seed: The run's seed.

    Returns:
        Index of the sample, in range(num_samples).

    Raises:
        ValueError: A negative position, or no samples.
    """
    if position < 0 or num_samples < 1:
        raise ValueError(
            f"position {position} of {num_samples} samples does not exist:"
            " a position is at least 0 and there is at least one sample."
        )
    epoch, offset = divmod(position, num_samples)
    key = stream_seed(seed, epoch)
    side = isqrt(num_samples - 1) + 1
    # Cycle walking: the network permutes range(side²), so following it from inside the epoch comes
    # back inside. side² exceeds num_samples by less than 2 · side: seldom more than one turn.
    walked = _permute_square(offset, side, key)
    while walked >= num_samples:
        walked = _permute_square(walked, side, key)
    return walked


def micro_batches_of_group(num_micro_batches: int, num_groups: int, group_index: int) -> range:
    """Return the micro-batches of a step that one partition group takes.

    The ranges of all groups are contiguous, cover every micro-batch once and differ in size by at
    most one; the first groups take the longer ones.

    Args:
        num_micro_batches: Micro-batches of the step, over all groups.
        num_groups: Partition groups of the generation, at least 1.
        group_index: Place of the group in the generation, in range(num_groups).

    Raises:
        ValueError: The group is not one of the generation.
    """
    if not 0 <= group_index < num_groups:
        raise ValueError(f"group {group_index} is not one of the generation's {num_groups} groups.")
    share, longer = divmod(num_micro_batches, num_groups)
    start = group_index * share + min(group_index, longer)
    return range(start, start + share + (group_index < longer))


def divide_what_is_left(
    num_micro_batches: int, done: Sequence[Collection[int]]
) -> list[tuple[int, ...]]:
    """Return the micro-batches that each partition group still takes of a step that has begun.

    What nobody has done is divided like a whole step (`micro_batches_of_group`): all groups have an
    equal part of it, to within one, whatever they have done before.

    Args:
        num_micro_batches: Micro-batches of the step, over all groups.
        done: The micro-batches that each group has done already; no two have done the same.
    """
    are_done = frozenset().union(*done)
    left = [index for index in range(num_micro_batches) if index not in are_done]
    parts = [micro_batches_of_group(len(left), len(done), group) for group in range(len(done))]
    return [tuple(left[part.start : part.stop]) for part in parts]


def micro_batch_of_step(
    step: int,
    micro_batch_index: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    partition_size: int,
) -> MicroBatch:
    """Return the positions that one micro-batch of a step covers, whichever group takes it.

    Args:
        step: Number of the step, from 0.
        micro_batch_index: Number of the micro-batch inside the step, from 0.
        global_batch_size: Samples in a step.
        micro_batch_size: Samples that one worker takes at a time.
        partition_size: Workers of a partition group.

    Raises:
        ValueError: The step has no such micro-batch.
    """
    num_samples = partition_size * micro_batch_size
    if not 0 <= micro_batch_index * num_samples <= global_batch_size - num_samples:
        raise ValueError(
            f"micro-batch {micro_batch_index} of {num_samples} samples does not lie inside a"
            f" global batch of {global_batch_size} samples."
        )
    first_position = step * global_batch_size + micro_batch_index * num_samples
    return MicroBatch(micro_batch_index, first_position, num_samples)


def positions_of_worker(
    step: int,
    micro_batch_index: int,
    *,
    global_batch_size: int,
    micro_batch_size: int,
    partition_size: int,
    rank: int,
) -> range:
    """Return the positions that one worker of a partition group takes in a micro-batch.

    A micro-batch of a group is partition_size · micro_batch_size consecutive positions; the worker
    of rank r takes the r-th slice of micro_batch_size.

    Args:
        step: Number of the step, from 0.
        micro_batch_index: Number of the micro-batch inside the step, from 0.
        global_batch_size: Samples in a step.
        micro_batch_size: Samples that one worker takes at a time.
        partition_size: Workers of the partition group.
        rank: Rank of the worker inside its partition group.

    Raises:
        ValueError: The step has no such micro-batch, or the group no such rank.
    """
    if not 0 <= rank < partition_size:
        raise ValueError(f"rank {rank} is not one of the group's {partition_size} workers.")
    micro_batch = micro_batch_of_step(
        step,
        micro_batch_index,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        partition_size=partition_size,
    )
    start = micro_batch.first_position + rank * micro_batch_size
    return range(start, start + micro_batch_size)


def stream_seed(seed: int, *parts: int) -> int:
    """Return the seed of an independent random stream, for dropout, masking and data order.

    Args:
        seed: The run's seed.
        parts: Whatever names the stream, such as a step, a micro-batch and a rank.

    Returns:
        A 63-bit hash (BLAKE2b) of the seed and the parts; it differs for each sequence of parts.
    """
    text = ",".join(str(part) for part in (seed, *parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def _permute_square(value: int, side: int, key: int) -> int:
    """Permute range(side²) by a Feistel network; addition modulo `side` takes the place of xor."""
    left, right = divmod(value, side)
    for number in range(_NUM_ROUNDS):
        left, right = right, (left + _mix(key, right * _NUM_ROUNDS + number)) % side
    return left * side + right


def _mix(key: int, counter: int) -> int:
    """Return 64 pseudo-random bits: number `counter` of the SplitMix64 stream that `key` begins."""
    bits = (key + (counter + 1) * _GOLDEN_GAMMA) & _MASK_64
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return bits ^ (bits >> 31)
