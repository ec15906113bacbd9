"""The step summary: what every worker learns about a step in the exchange that the step needs.

It carries the loss, and with it the count of the samples used and the newest generation that anyone
has heard of, so that all workers of all groups see a pending change at the same step boundary
without asking anyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

__all__ = ["Share", "StepCommit", "Summary", "combine", "combine_groups"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over some workers of one step; travels as a vector of doubles.

    Args:
        loss_sum: Sum of the token losses.
        num_tokens: Tokens that entered the loss.
        num_samples: Samples used.
        offset_sum: Sum of the places of the used samples in the global batch.
        offset_square_sum: Sum of their squares.
        pending_generation: Highest generation number heard of.
        checkpoint: Lowest progress of the checkpoint under way (`Checkpointer.progress`).
        behind: 1 if a worker does not hold the states that this step ends with.
        full: 1 if a worker that is behind may keep no more gradients after this step's.
    """

    loss_sum: float
    num_tokens: float
    num_samples: float
    offset_sum: float
    offset_square_sum: float
    pending_generation: float
    checkpoint: float
    behind: float
    full: float

    def as_vector(self) -> list[float]:
        """Return the fields as doubles; counts stay exact up to 2⁵³."""
        return [float(value) for value in astuple(self)]

    @staticmethod
    def flatten(rows: Sequence[Sequence[float]], num_rows: int) -> list[float]:
        """Return rows one after the other; zeros for all of them if there are none."""
        if not rows:
            return [0.0] * (num_rows * len(fields(Summary)))
        return [value for row in rows for value in row]

    def covers(self, share: Share) -> bool:
        """Whether the sums are those of a share's places, each once."""
        return (
            int(self.num_samples) == share.num_samples
            and int(self.offset_sum) == sum(_sum_of(places) for places in share.runs)
            and int(self.offset_square_sum) == sum(_square_sum_of(run) for run in share.runs)
        )


def combine(parts: Sequence[Summary]) -> Summary:
    """Combine the summaries of several workers, in their order, so that all get the same bits."""
    return Summary(
        loss_sum=sum(part.loss_sum for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_samples=sum(part.num_samples for part in parts),
        offset_sum=sum(part.offset_sum for part in parts),
        offset_square_sum=sum(part.offset_square_sum for part in parts),
        pending_generation=max(part.pending_generation for part in parts),
        checkpoint=min(part.checkpoint for part in parts),
        behind=max(part.behind for part in parts),
        full=max(part.full for part in parts),
    )


def combine_groups(vectors: Sequence[Sequence[float]], num_groups: int) -> list[Summary]:
    """Combine what each worker of a partition group has gathered across its replication group.

    Args:
        vectors: One vector a worker of this group, by rank: the summaries of the workers of its
            rank in all groups, one after the other.
        num_groups: Partition groups of the generation.

    Returns:
        The summary of each group, in the generation's order.
    """
    width = len(fields(Summary))
    return [
        combine([Summary(*vector[place * width : (place + 1) * width]) for vector in vectors])
        for place in range(num_groups)
    ]


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a global batch that one partition group uses: runs of places, in their order.

    It is one run as a rule. After a loss a group may have what it had computed before and a part of
    what was left.
    """

    runs: tuple[range, ...] = ()

    @classmethod
    def of_micro_batches(cls, indices: Iterable[int], samples: int) -> Share:
        """Return the share of a group that takes these micro-batches, of so many samples each."""
        runs: list[range] = []
        for index in sorted(indices):
            first, stop = index * samples, (index + 1) * samples
            if runs and runs[-1].stop == first:
                first = runs.pop().start
            runs.append(range(first, stop))
        return cls(tuple(runs))

    @property
    def num_samples(self) -> int:
        """Number of its places."""
        return sum(len(run) for run in self.runs)


def _sum_of(places: range) -> int:
    return len(places) * (places.start + places.stop - 1) // 2


def _square_sum_of(places: range) -> int:
    below = [(n - 1) * n * (2 * n - 1) // 6 for n in (places.start, places.stop)]
    return below[1] - below[0]


@dataclass(frozen=True, slots=True)
class StepCommit:
    """A committed step, the same on every worker that committed it.

    Args:
        step: Number of the step, from 0.
        loss: Mean token loss over the global batch.
        num_tokens: Tokens that entered the loss.
        gradient_norm: Norm of the whole gradient before clipping.
        learning_rate: Learning rate of the step.
        generation: Generation that committed it.
        num_groups: Partition groups that took micro-batches.
        shares: What each group used, by place in the generation.
        pending_generation: Highest generation number that anyone has heard of.
        checkpoint: Lowest progress of the checkpoint under way (`Checkpointer.progress`).
        up_to_date: Places in the generation of the groups that hold the states after this step.
        waits_for_copy: Whether all groups wait after it, until one that is behind has its copy.
        waited_s: Seconds in which a worker of this group, on the mean, waited for collectives; none
            on a GPU, whose streams wait.
        waited_across_s: Seconds after its own backward in which that worker of this group waited
            for other groups that did so least. In this and the field before groups differ.
        in_hand: The part of the step, 0 to 1, that its groups had computed before this generation.
    """

    step: int
    loss: float
    num_tokens: int
    gradient_norm: float
    learning_rate: float
    generation: int
    num_groups: int
    shares: tuple[Share, ...]
    pending_generation: int
    checkpoint: float
    up_to_date: tuple[int, ...]
    waits_for_copy: bool = False
    waited_s: float | None = None
    waited_across_s: float = 0.0
    in_hand: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Tells this step from others of its number, such as one of an earlier run."""
        return f"{self.generation}-{self.loss.hex()}-{self.gradient_norm.hex()}"
