"""What is predicted for a layout, and the layout it is predicted for, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from mics_core.planner.collectives import Span
from mics_core.planner.memory import Optimizer, Precision
from mics_core.planner.strategy import Strategy

__all__ = ["Layout", "Memory", "Prediction", "Times", "Traffic", "Workload"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """What of a job the layout cannot change."""

    global_batch_size: int
    """Samples of a step, over all partition groups."""
    precision: Precision = "bf16"
    """Precision of the training."""
    optimizer: Optimizer = "adamw"
    """The update rule."""
    has_momentum: bool = False
    """For SGD: whether it keeps a momentum."""
    bucket_bytes: int = 4 * _MIB
    """Gradients go across partition groups in buckets of whole units of at least this size."""
    offload_optimizer: bool = False
    """Whether shards and optimizer are in the host's memory; for GPUs alone."""
    determinism: Literal["relaxed", "bitwise"] = "relaxed"
    """`bitwise`: gradients are added up in one order, whoever computes them."""
    minimum_groups: int = 1
    """Partition groups that the run has at least; copies of the states are divided among them."""
    writes_checkpoints: bool = False
    """Whether workers copy their part of the states to have it written beside the steps."""
    is_elastic: bool = False
    """Whether groups may join the run: its members then copy their part of the states for them."""
    reuses_gradients: bool = False
    """Whether a worker sets its gradient aside before it crosses, to go on with it after a loss."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to run a job on a cluster."""

    partition_size: int
    """Workers of a partition group (p)."""
    num_groups: int
    """Partition groups (N)."""
    micro_batch_size: int
    """Samples that one worker takes at a time."""
    strategy: Strategy = field(default_factory=Strategy)
    """How the model states move."""
    is_checkpointed: bool = False
    """Whether activations are computed again in backward."""

    @property
    def num_workers(self) -> int:
        """Workers of all groups together."""
        return self.partition_size * self.num_groups

    def span(self, workers_per_node: int) -> Span:
        """Return where one group stands on nodes of k workers each.

        Raises:
            ValueError: p is above k and no multiple of it.
        """
        if self.partition_size <= workers_per_node:
            return Span(1, self.partition_size)
        if self.partition_size % workers_per_node:
            raise ValueError(
                f"partition_size {self.partition_size} is no multiple of the {workers_per_node}"
                " workers of a node. Choose a multiple, or at most one node's workers."
            )
        return Span(self.partition_size // workers_per_node, workers_per_node)

    def micro_batches(self, global_batch_size: int) -> int:
        """Return the micro-batches of the busiest group in one step."""
        samples = self.partition_size * self.micro_batch_size * self.num_groups
        return -(-global_batch_size // samples)


class _Sum:
    """Adds up the parts of a prediction."""

    __slots__ = ()

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(getattr(self, part.name) for part in fields(self))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Memory(_Sum):
    """Bytes of one worker, by what they hold."""

    model_states: float
    """Its share of parameters, gradients and optimizer states."""
    gathered: float
    """Parameters of other workers: the unit in use, the one ahead, and what is kept of a step."""
    gradients: float
    """Gradients on their way: a whole unit's and that of what is outside the blocks, copies for the
    reduction, sums kept a node, and sums kept to be added up in one order."""
    activations: float
    """Activations of one micro-batch, with the loss' copies of the logits where these come on top
    of the largest need; an estimate."""
    buckets: float
    """Buckets of the second hop."""
    update: float
    """What the end of a step needs beyond all that is free then: a gradient shard more, as the
    optimizer's state is made, and in every step of SGD."""
    copies: float = 0.0
    """On CPUs, copies of the states: for a checkpoint, and for a group that joins."""


@dataclass(frozen=True, slots=True)
class Traffic(_Sum):
    """Bytes that leave a node in one step, by cause."""

    gather_forward: float
    """Parameter all-gathers of forward passes."""
    gather_backward: float
    """Parameter all-gathers of backward passes."""
    scatter: float
    """Gradient reduce-scatters."""
    second_hop: float
    """Gradients across partition groups."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one step on one worker, by part: whole durations, and what of them shows."""

    forward: float
    """Computing forward passes."""
    recompute: float
    """Computing activations again."""
    backward: float
    """Computing backward passes."""
    gather_forward: float
    """Parameter all-gathers of forward passes, hidden or not."""
    gather_backward: float
    """Parameter all-gathers of backward passes, hidden or not."""
    scatter: float
    """Gradient reduce-scatters, hidden or not."""
    second_hop: float
    """Gradients across partition groups, hidden or not."""
    optimizer: float
    """The optimizer's update."""
    summary: float
    """The small exchanges that end a step."""
    exposed_forward: float
    """What forward passes wait for gathers."""
    exposed_backward: float
    """What backward passes wait for gathers and reduce-scatters."""
    exposed_second_hop: float
    """What the step waits for the second hop beyond that."""

    @property
    def compute(self) -> float:
        """Computing the model."""
        return self.forward + self.recompute + self.backward

    @property
    def exposed(self) -> float:
        """Communication that no computing hides."""
        return self.exposed_forward + self.exposed_backward + self.exposed_second_hop

    @property
    def step(self) -> float:
        """The whole step."""
        return self.compute + self.exposed + self.optimizer + self.summary

    @property
    def without_overlap(self) -> float:
        """The step if communication never ran beside computing."""
        moving = self.gather_forward + self.gather_backward + self.scatter + self.second_hop
        return self.compute + moving + self.optimizer + self.summary


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model says of one layout."""

    layout: Layout
    micro_batches: int
    """Micro-batches of the busiest group in a step."""
    memory: Memory
    traffic: Traffic
    times: Times
    samples_per_s: float
    tokens_per_s: float
    model_tflops: float
    """TFLOP/s of one worker, without operations that are done again."""
    hardware_tflops: float
    """TFLOP/s of one worker, with them; what publications of training speed usually state."""
    mfu: float
    """Model operations as a share of the cluster's peak in the job's precision."""

    @property
    def step_s(self) -> float:
        """Seconds of one step."""
        return self.times.step
