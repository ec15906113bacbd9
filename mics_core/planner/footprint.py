"""Memory of one worker under a layout, by part: what must fit.

It is held against what `python -m benchmarks.memory` measured, by a test.
"""

from __future__ import annotations

from mics_core.planner.collectives import Span
from mics_core.planner.memory import (
    compute_bytes_per_number,
    model_state_bytes_per_parameter,
    reduce_bytes_per_number,
)
from mics_core.planner.prediction import Layout, Memory, Workload
from mics_core.planner.profile import Backend
from mics_core.planner.shape import ModelShape

__all__ = [
    "UNKNOWN_PERCENT",
    "USABLE_PERCENT",
    "memory_of",
    "reserve_in_words",
    "usable_bytes",
    "usable_percent",
]

USABLE_PERCENT = 90
"""Share of a worker's memory that may be planned with; the rest is for allocator and libraries."""
UNKNOWN_PERCENT = 40
"""Share that is kept for activations which are not known."""

_UNITS_GATHERED = 2  # the block in use and the one ahead; the root stays beside them
_BUCKETS_IN_FLIGHT = 2
_COPIES_OF_A_GRADIENT: dict[Backend, int] = {
    "gloo": 3,  # two scatters under way, and what the all-to-all of one of them receives
    "nccl": 1,
}


def usable_percent(model: ModelShape) -> int:
    """Return the share of a worker's memory that a model may be planned with."""
    return USABLE_PERCENT - (0 if model.knows_activations else UNKNOWN_PERCENT)


def usable_bytes(memory_bytes: int, model: ModelShape) -> int:
    """Return what of a worker's memory a model may be planned with."""
    return memory_bytes * usable_percent(model) // 100


def reserve_in_words(model: ModelShape) -> str:
    """Return the end of a sentence about activations that are not known; else nothing."""
    if model.knows_activations:
        return ""
    return f"; activations are unknown, so {UNKNOWN_PERCENT} % of the memory is kept for them"


def memory_of(
    model: ModelShape, layout: Layout, workload: Workload, span: Span, backend: Backend = "nccl"
) -> Memory:
    """Return the bytes of one worker of a partition group that stands on `span`.

    Args:
        model: The model.
        layout: How it is run.
        workload: Precision and optimizer.
        span: Where one partition group stands.
        backend: What runs the collectives.
    """
    compute = compute_bytes_per_number(workload.precision)
    reduce = reduce_bytes_per_number(workload.precision)
    strategy, size = layout.strategy, layout.partition_size
    gathered = gradients = 0.0
    if size > 1:
        blocks = min(_UNITS_GATHERED, model.num_blocks) * model.largest_block
        if strategy.reshard == "never":
            gathered = float(model.parameters * compute)
        else:
            gathered = float((model.root.parameters + blocks) * compute)
            if strategy.reshard == "node":
                gathered += model.parameters * compute / span.workers
        copies = _COPIES_OF_A_GRADIENT[backend] * reduce
        gradients = float(max(model.root.parameters, model.largest_block) * (compute + copies))
        if strategy.accumulation == "node":
            gradients += model.parameters * reduce / span.workers
    largest = max(model.root.parameters, model.largest_block) * reduce / size
    bucket = max(largest, min(workload.bucket_bytes, model.parameters * reduce / size))
    buckets = _BUCKETS_IN_FLIGHT * bucket if layout.num_groups > 1 else 0.0
    activations = float(_activations(model, layout) * compute)
    # The optimizer works before and after the passes, in the memory of what these need.
    more = 0.0 if workload.offload_optimizer else float(-(-model.parameters * reduce // size))
    return Memory(
        model_states=float(-(-model.parameters * _state_bytes(workload) // size)),
        gathered=gathered,
        gradients=gradients,
        activations=activations,
        buckets=buckets,
        update=max(0.0, more - gathered - gradients - activations - buckets),
    )


def _state_bytes(workload: Workload) -> int:
    """Bytes of a worker's own states of one parameter; offloaded ones are the host's."""
    if workload.offload_optimizer:
        return compute_bytes_per_number(workload.precision) + reduce_bytes_per_number(
            workload.precision
        )
    return model_state_bytes_per_parameter(
        workload.precision, workload.optimizer, has_momentum=workload.has_momentum
    )


def _activations(model: ModelShape, layout: Layout) -> int:
    """Numbers that a worker keeps at the end of a micro-batch's forward pass."""
    blocks = model.num_blocks * model.block.activations
    if layout.is_checkpointed and model.num_blocks:
        blocks = model.num_blocks * model.block_inputs + model.block.activations
    return layout.micro_batch_size * (blocks + model.root.activations)
