"""Memory of one worker under a layout, by part: what must fit.

It is held against what `python -m benchmarks.memory` measured, by a test.

[Note: when memory peaks]
Model states, buckets and what is kept for a whole step are there all the time. The rest comes and
goes within a micro-batch, and is largest at one of these moments:

- *Loss*: forward is done. All activations are kept, and the loss' copies of the logits are there.
  What is outside the blocks (the root) is still gathered, of the blocks nothing; FSDP2 keeps the
  root's parameters from forward to backward.
- *Backward of the head*: of the copies of the logits their gradient is left, and the root's own
  gradient begins. The last block is fetched.
- *Backward of the last block*: the logits are gone. Two blocks are gathered, the one in use and
  that ahead, which is still the buffer of its all-gather; with that the inter-node stage's column.
  The gradient of a block is on its way, and the root's waits for the bottom of the model: the
  embedding's is added to it where weights are tied.
- *End of backward*: the activations are gone. The gradients that head and embedding have for a tied
  weight are added up; then the root's gradient is on its way, and its parameters are gone.

What FSDP2 allocates beside the parameters, the output of an all-gather, is freed as soon as it is
copied out of it. With `reshard: never` that happens in the first forward of a step alone, when no
gradient is on its way: it is smaller than what backward has in its place, so it adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.planner.collectives import Span
from mics_core.planner.memory import (
    STAGING_SLOT_BYTES,
    checkpointed_bytes_per_parameter,
    compute_bytes_per_number,
    logit_bytes,
    model_state_bytes_per_parameter,
    reduce_bytes_per_number,
)
from mics_core.planner.ordering import most_nodes, sums_kept
from mics_core.planner.prediction import Layout, Memory, Workload
from mics_core.planner.profile import Backend
from mics_core.planner.shape import ModelShape
from mics_core.planner.strategy import Route

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
_PARTS_OF_TIED = 3  # the head's and the embedding's gradient of a tied weight, and their sum
_NUMBERS_EXCHANGED = 1 << 20  # of a gradient added up in one order, at a time


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
        workload: What of the job the layout cannot change.
        span: Where one partition group stands.
        backend: What runs the collectives.
    """
    shard = float(-(-model.parameters * reduce_bytes_per_number(workload.precision) // span.size))
    kept = _Kept.of(model, layout, workload, span, shard)
    peak = max(_moments(model, layout, workload, span, backend), key=lambda moment: moment.total)
    buckets = _buckets(model, layout, workload, shard)
    return Memory(
        model_states=float(-(-model.parameters * _state_bytes(workload) // layout.partition_size)),
        gathered=kept.gathered + peak.gathered,
        gradients=kept.gradients + peak.gradients,
        activations=peak.activations,
        buckets=buckets,
        update=max(0.0, _at_the_end(layout, workload, shard) - peak.total - buckets),
        copies=_copies(model, layout, workload, shard) if backend == "gloo" else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept from one micro-batch to the next."""

    gathered: float
    gradients: float

    @classmethod
    def of(
        cls, model: ModelShape, layout: Layout, workload: Workload, span: Span, shard: float
    ) -> _Kept:
        strategy, gathered, gradients = layout.strategy, 0.0, 0.0
        whole = model.parameters
        if span.size > 1 and strategy.reshard == "node":  # the columns of all units
            gathered = whole * compute_bytes_per_number(workload.precision) / span.workers
        if span.size > 1 and strategy.accumulation == "node":
            gradients = whole * reduce_bytes_per_number(workload.precision) / span.workers
        if workload.determinism == "bitwise":
            num_micro_batches = _num_micro_batches(layout, workload)
            gradients += sums_kept(num_micro_batches, layout.num_groups) * shard
        return cls(gathered, gradients)


@dataclass(frozen=True, slots=True)
class _Moment:
    """What comes and goes, at one of the moments of [Note: when memory peaks]."""

    gathered: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        return self.gathered + self.gradients + self.activations


def _moments(
    model: ModelShape, layout: Layout, workload: Workload, span: Span, backend: Backend
) -> tuple[_Moment, ...]:
    compute = compute_bytes_per_number(workload.precision)
    reduce = reduce_bytes_per_number(workload.precision)
    root, block = float(model.root.parameters), float(model.largest_block)
    kept = model.num_blocks * (
        model.block_inputs if layout.is_checkpointed else model.block.activations
    )
    kept = layout.micro_batch_size * (kept + model.root.activations) * compute
    again = layout.micro_batch_size * model.block.activations * compute
    logits = layout.micro_batch_size * model.logits
    loss = kept + logits * logit_bytes(workload.precision)
    head = kept + logits * compute
    if not layout.is_checkpointed or not model.num_blocks:
        again = 0
    if span.size == 1 and not _has_fsdp(workload):
        # Autograd adds gradients up in the buffer; a tied weight's waits for its second part.
        return (
            _Moment(0.0, 0.0, loss),
            _Moment(0.0, root * compute, head),
            _Moment(0.0, root * compute, kept + again),
            _Moment(0.0, _PARTS_OF_TIED * root * compute, 0.0),
        )
    held = model.parameters * compute if layout.strategy.reshard == "never" else None
    of_root = root * compute if held is None else held
    of_first = of_blocks = of_root
    if held is None:
        of_first += min(1, model.num_blocks) * block * compute
        of_blocks += _blocks_gathered(model, layout, workload, span)
    scratch = _scratch(model, layout, span, backend) * reduce
    if backend == "gloo":
        scratch += _staging(model, layout, workload, span)
    if span.size == 1:
        # FSDP2 divides a copy of the gradient, and the sum so far is set aside meanwhile.
        last, end = (root + block) * compute + 3 * block * reduce, 3 * root * reduce
    else:
        # On the host two scatters are under way (`mics_core.engine.units`), else one.
        before = block if backend == "gloo" else 0.0
        last = (root + block) * compute + (block + before) * reduce
        end = root * compute + (root + before) * reduce
    return (
        _Moment(of_root, scratch, loss),
        _Moment(of_first, scratch + root * compute, head),
        _Moment(of_blocks, scratch + last, kept + again),
        _Moment(of_root, scratch + _PARTS_OF_TIED * root * compute, 0.0),
        # Parameters are let go before their gradient is reduced.
        _Moment(held or 0.0, scratch + end, 0.0),
    )


def _has_fsdp(workload: Workload) -> bool:
    """Whether one worker that holds everything goes through FSDP2 (`mics_core.engine.build`)."""
    return workload.precision == "bf16" or workload.offload_optimizer


def _blocks_gathered(model: ModelShape, layout: Layout, workload: Workload, span: Span) -> float:
    """Bytes of the blocks that are gathered in backward, and of what gathering them takes."""
    compute = compute_bytes_per_number(workload.precision)
    block = float(model.largest_block)
    # With one worker nothing is fetched ahead.
    num_units = min(_UNITS_GATHERED if span.size > 1 else 1, model.num_blocks)
    gathered = num_units * block * compute
    strategy = layout.strategy
    if span.has_stages and strategy.reshard == "always" and strategy.gather_block != "flat":
        gathered += block * compute / span.workers  # the inter-node stage's column
    shard = block / span.size
    if workload.precision == "bf16" and span.size > 1:
        gathered += shard * compute  # cast before it is sent
    if workload.offload_optimizer:
        gathered += shard * reduce_bytes_per_number(workload.precision)  # fetched from the host
    return gathered


def _scratch(model: ModelShape, layout: Layout, span: Span, backend: Backend) -> float:
    """Numbers in the buffers of the scatters, which stay once made (`ScatterScratch`)."""
    strategy, size = layout.strategy, span.size
    if size == 1:
        return 0.0

    def received(numbers: float, route: Route) -> float:
        if backend == "gloo":
            # What all others send; around a ring two parts of it, in stages those of other nodes of
            # a column, and inside a node nothing.
            if not span.has_stages:
                return numbers if span.workers == 1 else 0.0
            return 2 * numbers / size if route == "flat" else numbers / span.workers
        # What is to be added to the sum so far.
        by_node = route != "flat" and strategy.accumulation == "node"
        return numbers / (span.workers if by_node else size)

    def column(numbers: float, route: Route) -> float:
        staged = span.has_stages and route != "flat" and strategy.accumulation == "group"
        return numbers / span.workers if staged else 0.0

    units = (
        (float(model.root.parameters), strategy.scatter_root),
        (float(model.largest_block), strategy.scatter_block),
    )
    return max(received(*unit) for unit in units) + max(column(*unit) for unit in units)


def _staging(model: ModelShape, layout: Layout, workload: Workload, span: Span) -> float:
    """Bytes of what a worker shows the others of its node: two slots for each kind of collective.

    Pages of others that it has read are theirs.
    """
    if span.workers == 1:
        return 0.0
    strategy = layout.strategy
    gathers = strategy.reshard, strategy.gather_block, strategy.gather_root
    scatters = strategy.scatter_block, strategy.scatter_root
    largest = float(max(model.root.parameters, model.largest_block))
    shown = 0.0
    if span.num_nodes == 1 or not {*gathers}.isdisjoint({"node", "hierarchical"}):
        column = largest / span.workers * compute_bytes_per_number(workload.precision)
        shown += min(STAGING_SLOT_BYTES, column)
    if span.num_nodes == 1 or "hierarchical" in scatters:
        gradient = largest * reduce_bytes_per_number(workload.precision)
        shown += min(STAGING_SLOT_BYTES, gradient)
    return 2 * shown


def _buckets(model: ModelShape, layout: Layout, workload: Workload, shard: float) -> float:
    if layout.num_groups == 1 or workload.determinism == "bitwise":
        return 0.0
    reduce = reduce_bytes_per_number(workload.precision)
    largest = max(model.root.parameters, model.largest_block) * reduce / layout.partition_size
    return _BUCKETS_IN_FLIGHT * max(largest, min(workload.bucket_bytes, shard))


def _at_the_end(layout: Layout, workload: Workload, shard: float) -> float:
    """Bytes that the end of a step needs, in the memory of what the passes needed.

    SGD makes a gradient shard more (on the host where that has its states), AdamW nothing.
    Gradients that are added up in one order are one sum more after the last micro-batch, and cross
    the replication group a slice at a time: each member's nodes, sent and received.
    """
    optimizer = shard if workload.optimizer == "sgd" and not workload.offload_optimizer else 0.0
    if workload.determinism != "bitwise":
        return optimizer
    reduce = reduce_bytes_per_number(workload.precision)
    nodes = most_nodes(_num_micro_batches(layout, workload), layout.num_groups)
    exchanged = 2 * nodes * min(shard, float(_NUMBERS_EXCHANGED * reduce))
    return shard + max(optimizer, exchanged if layout.num_groups > 1 else 0.0)


def _num_micro_batches(layout: Layout, workload: Workload) -> int:
    """Micro-batches of a step, over all groups."""
    samples = layout.partition_size * layout.micro_batch_size
    return max(1, workload.global_batch_size // samples)


def _copies(model: ModelShape, layout: Layout, workload: Workload, shard: float) -> float:
    """Bytes of the copies of a worker's states that lie in the host's memory beside training.

    A gradient that crosses is set aside first, for a step that breaks to go on with. A checkpoint's
    copy is kept until it is written, a join's until it is sent; each is divided among the groups.
    There are as few of them as the job allows when a run begins to grow. What a newcomer
    keeps of gradients is not counted, nor are the newer states that a group which is a step behind
    receives beside its own: until it has caught up it computes nothing, and has the room of the
    passes for them.
    """
    kept = checkpointed_bytes_per_parameter(
        workload.precision, workload.optimizer, has_momentum=workload.has_momentum
    )
    num_copies = int(workload.writes_checkpoints) + int(workload.is_elastic)
    groups = max(1, min(workload.minimum_groups, layout.num_groups))
    copies = num_copies * float(-(-model.parameters * kept // (layout.partition_size * groups)))
    sets_aside = workload.reuses_gradients and workload.determinism != "bitwise"
    return copies + (shard if sets_aside and layout.num_groups > 1 else 0.0)


def _state_bytes(workload: Workload) -> int:
    """Bytes of a worker's own states of one parameter; offloaded ones are the host's."""
    if workload.offload_optimizer:
        return reduce_bytes_per_number(workload.precision)  # the gradient
    return model_state_bytes_per_parameter(
        workload.precision, workload.optimizer, has_momentum=workload.has_momentum
    )
