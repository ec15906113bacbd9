"""What each collective of a step costs: time, and bytes that leave a node.

Alpha-beta throughout: a collective is a number of rounds, each of which takes the latency of its
slowest link and the bytes of that link over its bandwidth (Thakur et al., "Optimization of
Collective Communication Operations in MPICH", IJHPCA 2005). M is the whole message, p the workers
of the partition group, n its nodes and w = p/n its workers a node.

All workers of a node talk at once: a bandwidth inside a node is that of each worker, one between
nodes that of the node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mics_core.planner.layout import ClusterShape, placement_of
from mics_core.planner.memory import Precision
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.strategy import Route

__all__ = [
    "NOTHING",
    "Cost",
    "Span",
    "all_gather",
    "all_gather_inside",
    "all_reduce",
    "ordered_exchange",
    "reduce_scatter",
    "reduce_scatter_across",
    "reduce_scatter_inside",
    "share_waited",
    "span_of",
]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a collective costs each worker and node that takes part."""

    time_s: float = 0.0
    """Time on the links."""
    node_bytes: float = 0.0
    """Bytes that leave a node."""
    worker_bytes: float = 0.0
    """Bytes that each worker sends in messages, inside its node or out of it."""
    handed_bytes: float = 0.0
    """Bytes that a worker reads and writes to hand tensors over in memory shared by its node; what
    that takes is part of the time."""
    copied_bytes: float = 0.0
    """Bytes that a worker reads and writes around the collective: copies in and out, the sum."""
    wire_s: float = 0.0
    """What of the time links between nodes take, as far as a node's workers wait for it."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.time_s + other.time_s,
            self.node_bytes + other.node_bytes,
            self.worker_bytes + other.worker_bytes,
            self.handed_bytes + other.handed_bytes,
            self.copied_bytes + other.copied_bytes,
            self.wire_s + other.wire_s,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(
            self.time_s * times,
            self.node_bytes * times,
            self.worker_bytes * times,
            self.handed_bytes * times,
            self.copied_bytes * times,
            self.wire_s * times,
        )

    def processor_s(self, cluster: ClusterProfile, precision: Precision) -> float:
        """Return the time for which it takes the worker's processor from computing.

        On CPUs the same cores compute, copy and drive the network; a byte that goes out over TCP
        and in again costs them as much as moving 27 through memory (fitted, docs/scaling.md). On
        GPUs all of it is done by other engines.
        """
        if cluster.backend == "nccl":
            return 0.0
        moved_bytes = _BYTES_MOVED_PER_SENT * self.worker_bytes + self.copied_bytes
        moved_bytes += self.handed_bytes
        return moved_bytes / cluster.moved_bytes_per_s(precision)


NOTHING = Cost()
_BYTES_MOVED_PER_SENT = 27
_MOVED_TO_HAND_OVER = 6
"""Two of them are the copies: a gather's shards into slots and out of them, a scatter's gradient
into one (reading it there is part of the sum). The rest is fitted (docs/scaling.md): workers that
wait for each other at doors take turns on their cores."""
_MOVED_TO_SUM_AND_COPY = 5


def share_waited(cluster: ClusterProfile, precision: Precision) -> float:
    """Return for which part of the time on links between nodes the processors have nothing to do.

    What the workers of a node can feed a link with at most is counted as time of their processors.
    A link as fast as that is never waited for.
    """
    fed = cluster.workers_per_node * cluster.moved_bytes_per_s(precision) / _BYTES_MOVED_PER_SENT
    return max(0.0, 1.0 - cluster.inter_node.bandwidth_bytes_per_s / fed)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a partition group stands: n nodes of w workers each."""

    num_nodes: int
    workers: int

    @property
    def size(self) -> int:
        """Workers of the group (p)."""
        return self.num_nodes * self.workers

    @property
    def has_stages(self) -> bool:
        """Whether two stages differ from one: several nodes of several workers."""
        return self.num_nodes > 1 and self.workers > 1


def span_of(partition_size: int, nodes: ClusterShape) -> Span:
    """Return where a partition group of p workers stands; one node if nothing is known."""
    placement = placement_of(partition_size, nodes)
    if placement is None:
        return Span(1, partition_size)
    return Span(placement.num_nodes, placement.workers_per_node)


def all_gather(num_bytes: float, span: Span, cluster: ClusterProfile, route: Route) -> Cost:
    """Gather a unit of M bytes on every worker of the partition group.

    Flat: a ring over all workers in the order of the nodes, p - 1 rounds of M/p bytes each; one
    worker of each node sends to the next node. Hierarchical: w rings between the nodes, n - 1
    rounds of M/n bytes a node, then the gathers inside (`all_gather_inside`).
    """
    if span.size == 1:
        return NOTHING
    if span.num_nodes == 1:
        return all_gather_inside(num_bytes, span, cluster)
    copied = Cost(copied_bytes=_gather_copies(num_bytes, span.size))
    if route == "flat":
        return _ring(num_bytes / span.size, span.size - 1, cluster) + copied
    return _across(num_bytes, span, cluster) + all_gather_inside(num_bytes, span, cluster)


def all_gather_inside(num_bytes: float, span: Span, cluster: ClusterProfile) -> Cost:
    """Gather, inside each node, a unit of which every worker holds 1/w: n gathers of M/n bytes.

    w - 1 rounds of M/w bytes in total. NCCL runs the n gathers as one batch, gloo in a row. Where
    workers share memory (`mics_core.comm.staging`) it is one gather, and nothing is sent.
    """
    if span.workers == 1:
        return NOTHING
    passed = _inside(num_bytes, span, cluster)
    if cluster.shares_memory:
        passed = replace(passed, worker_bytes=0.0, handed_bytes=_MOVED_TO_HAND_OVER * num_bytes)
    return replace(passed, copied_bytes=_gather_copies(num_bytes, span.workers))


def reduce_scatter(num_bytes: float, span: Span, cluster: ClusterProfile, route: Route) -> Cost:
    """Sum a unit's gradient of M bytes over the partition group, each worker keeping its shard.

    Flat over several nodes it is a ring, p - 1 rounds of M/p bytes: NCCL's, or the engine's own on
    the host (gloo's would send twice the bytes). Flat inside one node the host runs an all-to-all
    and a local sum, with the bytes of the ring. Hierarchical: a stage inside the nodes and one
    between them.
    """
    if span.size == 1:
        return NOTHING
    if span.num_nodes == 1:
        return reduce_scatter_inside(num_bytes, span, cluster)
    if route == "flat":
        # Read and write the unit's gradient on its way in, and add up around the ring.
        copied = Cost(copied_bytes=5 * num_bytes)
        return _ring(num_bytes / span.size, span.size - 1, cluster) + copied
    inside = reduce_scatter_inside(num_bytes, span, cluster)
    return inside + reduce_scatter_across(num_bytes, span, cluster)


def reduce_scatter_inside(num_bytes: float, span: Span, cluster: ClusterProfile) -> Cost:
    """Reduce inside each node, each worker keeping 1/w: the mirror of `all_gather_inside`."""
    if span.workers == 1:
        return NOTHING
    passed = _inside(num_bytes, span, cluster)
    if cluster.shares_memory:
        passed = replace(passed, worker_bytes=0.0, handed_bytes=_MOVED_TO_HAND_OVER * num_bytes)
    return replace(passed, copied_bytes=_scatter_copies(num_bytes, span.workers))


def reduce_scatter_across(num_bytes: float, span: Span, cluster: ClusterProfile) -> Cost:
    """Reduce between nodes what `reduce_scatter_inside` left: n - 1 rounds of M/n bytes a node."""
    return _across(num_bytes, span, cluster)


def all_reduce(num_bytes: float, span: Span, num_groups: int, cluster: ClusterProfile) -> Cost:
    """Sum gradients across partition groups: the second hop, over all replication groups at once.

    Where the members of a replication group share nodes evenly (g on each of m nodes): a
    reduce-scatter inside, an all-reduce between the nodes, an all-gather inside. Else a ring over
    the N members in the order of the nodes. A ring all-reduce takes 2(N - 1) rounds of a 1/N each.

    Args:
        num_bytes: The whole gradient; each replication group reduces 1/p of it.
        span: Where one partition group stands.
        num_groups: Partition groups (N).
        cluster: The cluster.
    """
    if num_groups == 1:
        return NOTHING
    shard = num_bytes / span.size
    inside, across = cluster.intra_node, cluster.inter_node
    if span.num_nodes > 1:  # every member has nodes to itself; w rings share a node's link
        rounds, piece = 2 * (num_groups - 1), span.workers * shard / num_groups
        return _rounds(rounds, across.time_s(piece), piece, piece / span.workers)
    sharing = min(num_groups, cluster.workers_per_node // span.workers)
    num_nodes = -(-num_groups // sharing)
    if num_nodes == 1:
        return _reduce_inside(shard, num_groups, cluster)
    if num_groups % sharing:
        rounds, piece = 2 * (num_groups - 1), shard / num_groups
        per_round = max(across.time_s(span.size * piece), inside.time_s(piece))
        return _rounds(rounds, per_round, span.size * piece, piece)
    inner = _reduce_inside(shard, sharing, cluster)
    rounds, piece = 2 * (num_nodes - 1), num_bytes / num_nodes
    of_worker = piece / (span.workers * sharing)
    return inner + _rounds(rounds, across.time_s(piece), piece, of_worker)


def ordered_exchange(
    num_bytes: float,
    span: Span,
    num_groups: int,
    num_nodes_of_tree: int,
    num_slices: int,
    cluster: ClusterProfile,
) -> Cost:
    """Sum gradients across partition groups in one order (`mics_core.engine.ordered_hop`).

    Each member sends 1/N of each of its K nodes of the tree to each other, an all-to-all, and what
    it finished of the sum goes round to all. Neither knows stages: members of one node too send
    each of their nodes to other nodes by themselves.

    Args:
        num_bytes: The whole gradient; each replication group sums up 1/p of it.
        span: Where one partition group stands.
        num_groups: Partition groups (N).
        num_nodes_of_tree: Nodes of the tree that a member sends (K).
        num_slices: Slices in which the gradient goes.
        cluster: The cluster.
    """
    if num_groups == 1:
        return NOTHING
    shard, others = num_bytes / span.size, num_groups - 1
    sharing = 1
    if span.num_nodes == 1:
        sharing = min(num_groups, max(1, cluster.workers_per_node // span.workers))
    sent = (num_nodes_of_tree + 1) * shard * others / num_groups
    outside = num_nodes_of_tree * sharing * (num_groups - sharing) / num_groups
    if num_groups > sharing:
        outside += others / num_groups  # one of the members on a node hands the sum on
    of_node = span.workers * outside * shard
    link = cluster.inter_node if of_node else cluster.intra_node
    wire_s = of_node / cluster.inter_node.bandwidth_bytes_per_s
    time_s = max(wire_s, sent / cluster.intra_node.bandwidth_bytes_per_s)
    time_s += num_slices * 2 * others * link.latency_s
    return Cost(time_s, of_node, sent, wire_s=time_s if of_node else 0.0)


def _inside(num_bytes: float, span: Span, cluster: ClusterProfile) -> Cost:
    """w - 1 rounds of M/w bytes between the workers of a node."""
    sent, link = (span.workers - 1) / span.workers * num_bytes, cluster.intra_node
    in_a_row = cluster.backend == "gloo" and not cluster.shares_memory
    latency_s = (span.workers - 1) * (span.num_nodes if in_a_row else 1) * link.latency_s
    return Cost(latency_s + sent / link.bandwidth_bytes_per_s, worker_bytes=sent)


def _reduce_inside(num_bytes: float, sharing: int, cluster: ClusterProfile) -> Cost:
    """The stages of an all-reduce that stay inside a node, of M bytes over g workers.

    Where they share memory each of them reads its g-th of the others' gradients and adds it to its
    own, and later copies theirs: where these lie, with nothing put into slots.
    """
    rounds, piece = 2 * (sharing - 1), num_bytes / sharing
    cost = _rounds(rounds, cluster.intra_node.time_s(piece), 0.0, piece)
    if cluster.shares_memory:
        handed = _MOVED_TO_SUM_AND_COPY * (sharing - 1) * piece
        cost = replace(cost, worker_bytes=0.0, handed_bytes=handed)
    return cost


def _ring(piece_bytes: float, rounds: int, cluster: ClusterProfile) -> Cost:
    """A ring over nodes: of each node's workers one sends to another node, the rest inside.

    Where workers share the node's processors those serve the others while the two that the link
    ends at wait for it.
    """
    per_round = max(cluster.inter_node.time_s(piece_bytes), cluster.intra_node.time_s(piece_bytes))
    cost = _rounds(rounds, per_round, piece_bytes, piece_bytes)
    return replace(cost, wire_s=cost.wire_s * min(1.0, 2.0 / cluster.workers_per_node))


def _across(num_bytes: float, span: Span, cluster: ClusterProfile) -> Cost:
    """w rings between the nodes at once: n - 1 rounds of M/n bytes a node."""
    rounds, piece = span.num_nodes - 1, num_bytes / span.num_nodes
    return _rounds(rounds, cluster.inter_node.time_s(piece), piece, piece / span.workers)


def _rounds(rounds: int, round_s: float, node_bytes: float, worker_bytes: float) -> Cost:
    time_s = rounds * round_s
    return Cost(
        time_s,
        rounds * node_bytes,
        rounds * worker_bytes,
        wire_s=time_s if node_bytes else 0.0,
    )


def _gather_copies(num_bytes: float, workers: int) -> float:
    """Read and write the shard on its way in, and the whole unit on its way to the parameters."""
    return 2 * num_bytes * (1 + 1 / workers)


def _scatter_copies(num_bytes: float, workers: int) -> float:
    """Read and write the unit's gradient on its way in, sum it up, and add the shard's sum."""
    return num_bytes * (3 + 4 / workers)
