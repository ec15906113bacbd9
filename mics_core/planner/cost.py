"""Predicts memory, bytes and time of a step under a layout: the cost model of the planner.

[Note: the step in time]
A step is m micro-batches of forward and backward, then the update. L blocks of computing time c
(forward) and c' = 2c, or 3c where activations are computed again; g and s are the times of one
block's all-gather and reduce-scatter, G and S those of the root's.

- Forward waits for G and the first g, which nothing runs beside. While a block computes, the next
  one is gathered: each of the other L - 1 blocks shows max(0, g - c).
- Backward waits for G; the last block's gather runs beside the root's own backward, r', and shows
  max(0, g - r'). While a block computes, the one below is gathered and the gradient of the one
  above is reduced, on the same links: max(0, g + s - c') for each of L - 1. The last s and S have
  nothing left beside them.
- The second hop runs beside the last micro-batch's backward, bucket by bucket: its time joins g + s
  there. The last bucket and the root's show whole.
- The update moves the optimizer's states through memory once. Two gathers of a few numbers end the
  step: 2(p - 1) rounds inside the group and N - 1 across groups.
- With `determinism: bitwise` each micro-batch is reduced as far as its last would be, its sum is
  copied and added to others, and the second hop shows whole, as it begins after backward.

On CPUs a collective also takes a time h of the processor that computes (`Cost.processor_s`), which
nothing can hide: what shows beside computing time c is at least max(h, time - c) there. That of
copies shows where nothing runs beside, too. And h does not run beside the wire between nodes w
(`Cost.wire_s`) in a group's collectives: gloo passes a piece on when it is there whole, and a
bucket leaves when its gradients are added up. So what shows is also at least h + w - c/4: a thread
that feeds the wire waits for its turn behind those that compute, so that the wire moves on during a
part of c alone. The quarter is a worker's share of a core in the runs it was held against, and fits
them (docs/scaling.md). Of the second hop only w joins this sum: its processor time has a thread of
its own. And of w counts what the processors wait for (`share_waited`): a link that takes as much as
they can feed it shows as their time alone.

What is not modelled: delays of launching kernels, stragglers, congestion by other traffic, and of
unequal nodes anything but where a partition group stands: groups are taken to share nodes, and
links to be shared, as if all nodes were like the largest.

[Note: the second hop of GPUs]
A bucket crosses groups from the host's memory (`mics_core.engine.second_hop`): it is copied there,
reduced by gloo, and copied back. The three run beside each other for different buckets, so one that
hides takes as long as the slowest, and the last one as long as all. Inside a node the members hand
each other their rows in that memory; a byte is taken to move there as fast as to a GPU. What gloo
reaches of the network between nodes is not known of named clusters, and taken to be all of it.

[Note: what offload copies]
On GPUs FSDP2 copies a shard from the host before each of its gathers, also where the columns of
`reshard: node` spare the wire, and each micro-batch's reduced gradient to the host. Both run on the
streams of gather and scatter, and hide as these do; with p = 1 it copies shards on the stream that
computes. The gradient of the step is copied once more, and waited for, before the host updates
(`UnitDriver.hand_over`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mics_core.planner.collectives import (
    NOTHING,
    Cost,
    Span,
    all_gather,
    all_gather_inside,
    all_reduce,
    ordered_exchange,
    reduce_scatter,
    reduce_scatter_across,
    reduce_scatter_inside,
    share_waited,
)
from mics_core.planner.footprint import memory_of
from mics_core.planner.memory import compute_bytes_per_number, reduce_bytes_per_number
from mics_core.planner.ordering import most_nodes
from mics_core.planner.prediction import Layout, Prediction, Times, Traffic, Workload
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.shape import ModelShape

__all__ = ["predict"]

_NUMBERS_IN_SLICE = 1 << 20  # of `mics_core.engine.ordered_hop`
_MOVED_TO_KEEP_A_SUM = 5  # numbers: copy the micro-batch's, read two sums and write one
_COMPUTING_THAT_HIDES_WIRES = 0.25  # on CPUs; see [Note: the step in time]


@dataclass(frozen=True, slots=True)
class _Pair:
    """The costs of one collective for a block and for the root."""

    block: Cost = NOTHING
    root: Cost = NOTHING

    def of_model(self, num_blocks: int) -> Cost:
        return self.block * num_blocks + self.root

    def __add__(self, other: _Pair) -> _Pair:
        return _Pair(self.block + other.block, self.root + other.root)


@dataclass(frozen=True, slots=True)
class _Exchanges:
    """What a partition group exchanges, by pass: the first of a step may differ from the others."""

    first_forward: _Pair
    later_forward: _Pair
    backward: _Pair
    scatter: _Pair
    last_scatter: _Pair


def predict(
    model: ModelShape,
    cluster: ClusterProfile,
    layout: Layout,
    workload: Workload,
    span: Span | None = None,
) -> Prediction:
    """Predict one step.

    Args:
        model: The model.
        cluster: The cluster.
        layout: How the job is run on it.
        workload: What of the job the layout cannot change.
        span: Where one partition group stands; by default as on nodes of equal size.

    Raises:
        ValueError: No span is given and the partition size is above one node's workers and no
            multiple of them, or the cluster's peak in the job's precision is not known.
    """
    if span is None:
        span = layout.span(cluster.workers_per_node)
    micro_batches = layout.micro_batches(workload.global_batch_size)
    exchanges = _exchanges(model, cluster, layout, workload, span)
    hop = _second_hop(model, cluster, layout, workload, span)
    times = _times(model, cluster, layout, workload, micro_batches, exchanges, hop, span)
    blocks, later = model.num_blocks, micro_batches - 1
    forward_bytes = exchanges.first_forward.of_model(blocks).node_bytes
    forward_bytes += later * exchanges.later_forward.of_model(blocks).node_bytes
    scatter_bytes = exchanges.last_scatter.of_model(blocks).node_bytes
    scatter_bytes += later * exchanges.scatter.of_model(blocks).node_bytes
    traffic = Traffic(
        gather_forward=forward_bytes,
        gather_backward=micro_batches * exchanges.backward.of_model(blocks).node_bytes,
        scatter=scatter_bytes,
        second_hop=hop.total.node_bytes,
    )
    samples_per_s = workload.global_batch_size / times.step
    again = model.num_blocks * model.block.flops if layout.is_checkpointed else 0.0
    flops_per_s = 3 * model.forward_flops * samples_per_s / layout.num_workers
    again_per_s = again * samples_per_s / layout.num_workers
    return Prediction(
        layout=layout,
        micro_batches=micro_batches,
        memory=memory_of(model, layout, workload, span, cluster.backend),
        traffic=traffic,
        times=times,
        samples_per_s=samples_per_s,
        tokens_per_s=samples_per_s * model.sequence_length,
        model_tflops=flops_per_s / 1e12,
        hardware_tflops=(flops_per_s + again_per_s) / 1e12,
        mfu=flops_per_s / cluster.peak(workload.precision),
    )


def _exchanges(
    model: ModelShape, cluster: ClusterProfile, layout: Layout, workload: Workload, span: Span
) -> _Exchanges:
    strategy = layout.strategy
    compute = compute_bytes_per_number(workload.precision)
    reduce = reduce_bytes_per_number(workload.precision)
    block, root = model.block.parameters, model.root.parameters
    whole = _Pair(
        all_gather(block * compute, span, cluster, strategy.gather_block),
        all_gather(root * compute, span, cluster, strategy.gather_root),
    )
    again = whole
    if strategy.reshard == "never":
        again = _Pair()
    elif strategy.reshard == "node":
        again = _Pair(
            all_gather_inside(block * compute, span, cluster),
            all_gather_inside(root * compute, span, cluster),
        )
    scatter = last = _Pair(
        reduce_scatter(block * reduce, span, cluster, strategy.scatter_block),
        reduce_scatter(root * reduce, span, cluster, strategy.scatter_root),
    )
    if strategy.accumulation == "node":
        scatter = _Pair(
            reduce_scatter_inside(block * reduce, span, cluster),
            reduce_scatter_inside(root * reduce, span, cluster),
        )
        last = scatter + _Pair(
            reduce_scatter_across(block * reduce, span, cluster),
            reduce_scatter_across(root * reduce, span, cluster),
        )
    if workload.determinism == "bitwise":
        scatter = last  # each micro-batch's gradient stands by itself
    if _copies_from_host(cluster, workload):
        # In the shards' precision, whatever is gathered.
        def copied(parameters: int) -> Cost:
            shard_bytes = parameters * reduce / layout.partition_size
            return Cost(shard_bytes / cluster.host_bytes_per_s)

        copies = _Pair(copied(block), copied(root))
        whole, scatter, last = whole + copies, scatter + copies, last + copies
        if strategy.reshard != "never":
            again = again + copies
    return _Exchanges(whole, again, again, scatter, last)


@dataclass(frozen=True, slots=True)
class _SecondHop:
    total: Cost
    beside_block: Cost
    """What joins each of the last backward's L - 1 intervals."""
    tail_s: float
    """Time of the last bucket and of the root's."""


def _second_hop(
    model: ModelShape, cluster: ClusterProfile, layout: Layout, workload: Workload, span: Span
) -> _SecondHop:
    """Blocks go in buckets of at least the wanted size, the root by itself."""
    if workload.determinism == "bitwise":
        return _ordered_hop(model, cluster, layout, workload, span)
    reduce = reduce_bytes_per_number(workload.precision)
    groups, blocks = layout.num_groups, model.num_blocks

    def crossing(num_bytes: float) -> tuple[Cost, float]:
        """Return what a bucket costs among others, and how long it takes by itself."""
        if cluster.backend != "nccl" or groups == 1:
            cost = all_reduce(num_bytes, span, groups, cluster)
            return cost, cost.time_s
        cost = all_reduce(num_bytes, span, groups, _on_hosts(cluster))
        copy_s = num_bytes / span.size / cluster.host_bytes_per_s
        return replace(cost, time_s=max(cost.time_s, copy_s)), cost.time_s + 2 * copy_s

    root, root_s = crossing(model.root.parameters * reduce)
    if not blocks:
        return _SecondHop(root, NOTHING, root_s)
    block_bytes = model.block.parameters * reduce
    fill = -(-workload.bucket_bytes * span.size // max(1, block_bytes))
    blocks_per_bucket = min(blocks, max(1, fill))
    buckets = blocks / blocks_per_bucket
    bucket, bucket_s = crossing(blocks_per_bucket * block_bytes)
    beside = bucket * ((buckets - 1) / (blocks - 1)) if blocks > 1 else NOTHING
    return _SecondHop(bucket * buckets + root, beside, bucket_s + root_s)


def _on_hosts(cluster: ClusterProfile) -> ClusterProfile:
    """Return GPUs as their second hop sees them; see [Note: the second hop of GPUs]."""
    inside = cluster.intra_node
    bandwidth = min(inside.bandwidth_bytes_per_s, cluster.host_bytes_per_s)
    return replace(cluster, intra_node=replace(inside, bandwidth_bytes_per_s=bandwidth))


def _ordered_hop(
    model: ModelShape, cluster: ClusterProfile, layout: Layout, workload: Workload, span: Span
) -> _SecondHop:
    """All of it after backward; with what it takes to keep and add up each micro-batch's sum."""
    reduce = reduce_bytes_per_number(workload.precision)
    whole = model.parameters * reduce
    shard = whole / span.size
    samples = layout.partition_size * layout.micro_batch_size
    nodes = most_nodes(max(1, workload.global_batch_size // samples), layout.num_groups)
    slices = -(-model.parameters // (span.size * _NUMBERS_IN_SLICE))
    cost = ordered_exchange(whole, span, layout.num_groups, nodes, slices, cluster)
    sums = layout.micro_batches(workload.global_batch_size)
    added_s = _MOVED_TO_KEEP_A_SUM * sums * shard / cluster.moved_bytes_per_s(workload.precision)
    cost = replace(cost, time_s=cost.time_s + added_s)
    return _SecondHop(cost, NOTHING, cost.time_s)


def _copies_from_host(cluster: ClusterProfile, workload: Workload) -> bool:
    """Whether shards lie in the host's memory; see [Note: what offload copies]."""
    return workload.offload_optimizer and cluster.backend == "nccl"


def _times(
    model: ModelShape,
    cluster: ClusterProfile,
    layout: Layout,
    workload: Workload,
    micro_batches: int,
    exchanges: _Exchanges,
    hop: _SecondHop,
    span: Span,
) -> Times:
    blocks, later, precision = model.num_blocks, micro_batches - 1, workload.precision
    is_on_cpus = cluster.backend == "gloo"

    def waited_s(cost: Cost) -> float:
        return cost.wire_s * share_waited(cluster, precision)

    def alone(cost: Cost) -> float:
        if not is_on_cpus:
            return cost.time_s
        copies = replace(cost, worker_bytes=0.0, handed_bytes=0.0)
        copies_s = copies.processor_s(cluster, precision)
        return max(cost.time_s + copies_s, cost.processor_s(cluster, precision) + waited_s(cost))

    # FSDP2 fetches nothing ahead for one worker.
    fetches_ahead = layout.partition_size > 1

    def beside(
        compute_s: float, gather: Cost, scatter: Cost = NOTHING, hop_part: Cost = NOTHING
    ) -> float:
        of_group = gather + scatter
        whole = of_group + hop_part
        shown_s = max(0.0, whole.time_s - compute_s)
        if not fetches_ahead:
            behind_s = scatter.time_s + hop_part.time_s
            shown_s = gather.time_s + max(0.0, behind_s - compute_s)
        if not is_on_cpus:
            return shown_s
        in_turn_s = of_group.processor_s(cluster, precision) + waited_s(whole)
        in_turn_s -= _COMPUTING_THAT_HIDES_WIRES * compute_s
        return max(shown_s, whole.processor_s(cluster, precision), in_turn_s)

    work = layout.micro_batch_size * cluster.seconds_per_flop(precision)
    block_s, root_s = model.block.flops * work, model.root.flops * work
    again_s = block_s if layout.is_checkpointed else 0.0
    backward_s = 2 * block_s + again_s

    def forward_shows(gather: _Pair) -> float:
        if not blocks:
            return alone(gather.root)
        others = (blocks - 1) * beside(block_s, gather.block)
        return alone(gather.root) + alone(gather.block) + others

    def backward_shows(scatter: _Pair, hop_part: Cost = NOTHING) -> float:
        gather = exchanges.backward
        shown = alone(gather.root) + alone(scatter.root)
        if not blocks:
            return shown
        shown += beside(2 * root_s, gather.block) + alone(scatter.block)
        return shown + (blocks - 1) * beside(backward_s, gather.block, scatter.block, hop_part)

    last = backward_shows(exchanges.last_scatter)
    last_with_hop = backward_shows(exchanges.last_scatter, hop.beside_block) + hop.tail_s
    forward_gather = exchanges.first_forward.of_model(blocks).time_s
    forward_gather += later * exchanges.later_forward.of_model(blocks).time_s
    scatter_s = exchanges.last_scatter.of_model(blocks).time_s
    scatter_s += later * exchanges.scatter.of_model(blocks).time_s
    return Times(
        forward=micro_batches * (blocks * block_s + root_s),
        recompute=micro_batches * blocks * again_s,
        backward=micro_batches * 2 * (blocks * block_s + root_s),
        gather_forward=forward_gather,
        gather_backward=micro_batches * exchanges.backward.of_model(blocks).time_s,
        scatter=scatter_s,
        second_hop=hop.total.time_s,
        optimizer=_update_s(model, cluster, layout, workload),
        summary=_summary_s(cluster, layout, span),
        exposed_forward=forward_shows(exchanges.first_forward)
        + later * forward_shows(exchanges.later_forward),
        exposed_backward=later * backward_shows(exchanges.scatter) + last,
        exposed_second_hop=last_with_hop - last,
    )


def _update_s(
    model: ModelShape, cluster: ClusterProfile, layout: Layout, workload: Workload
) -> float:
    """AdamW reads parameter, gradient and two moments, and writes all but the gradient."""
    num_moments = 2 if workload.optimizer == "adamw" else int(workload.has_momentum)
    bytes_per_number = reduce_bytes_per_number(workload.precision)
    num_bytes = (3 + 2 * num_moments) * bytes_per_number * model.parameters
    shard_bytes = num_bytes / layout.partition_size
    if _copies_from_host(cluster, workload):
        gradient_bytes = bytes_per_number * model.parameters / layout.partition_size
        return (shard_bytes + gradient_bytes) / cluster.host_bytes_per_s
    return shard_bytes / cluster.moved_bytes_per_s(workload.precision)


def _summary_s(cluster: ClusterProfile, layout: Layout, span: Span) -> float:
    inside, across = cluster.intra_node.latency_s, cluster.inter_node.latency_s
    of_group = across if span.num_nodes > 1 else inside
    on_one_node = span.num_nodes == 1 and layout.num_workers <= cluster.workers_per_node
    of_groups = inside if on_one_node else across
    rounds = 2 * (layout.partition_size - 1)
    return rounds * of_group + (layout.num_groups - 1) * of_groups
