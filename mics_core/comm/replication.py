"""The replication group: workers that hold the same shard in different partition groups.

It lives outside `torch.distributed`'s world, because its members belong to different Ray Train runs
and because it must be replaceable while the process lives: one object for each generation, dropped
when a member is lost. Anything that goes wrong here surfaces as `ReplicationError`; the survivors
then enter the next generation.

[Note: the second hop by node]
Members stand in the ring node by node, so that only one of a node's members sends out of it. If
every node has the same number m > 1 of them, the all-reduce goes in three stages: a reduce-scatter
inside the node, m all-reduces between nodes in parallel, one for each local place, and an
all-gather inside the node. A node's link then carries 2(n-1)/n of the gradient for n nodes, where
one ring over N members carries 2(N-1)/N. All stages work in place on the caller's buffer. Each has
process groups of its own, so that one bucket may be between nodes while the next is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from mics_core.comm.nodes import NodeGrid, node_grid
from mics_core.comm.stages import Scratch
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError

__all__ = ["NUM_STAGES", "Member", "ReplicationGroup", "connect"]

_RENDEZVOUS_SLICE = timedelta(milliseconds=250)
_COPY_BUCKET_BYTES = 32 << 20

NUM_STAGES = 3
"""Stages of an all-reduce: inside the node, between nodes, inside the node."""


@dataclass(frozen=True, slots=True)
class Member:
    """A worker's place in a replication group.

    Args:
        generation: Number of the generation the group belongs to.
        replication_index: Which replication group: the worker's rank in its partition group.
        rank: The place of the worker's partition group in the generation.
        size: Partition groups in the generation.
        node: The node the worker is on; members of one node reduce among themselves first.
    """

    generation: int
    replication_index: int
    rank: int
    size: int
    node: str = ""


@dataclass(frozen=True, slots=True)
class Ring:
    """The connected process groups (`dist.ProcessGroupGloo`, whose collectives torch's stubs lack).

    Args:
        order: The members' ranks in the order of the ring: node by node.
        grid: The members by node, in that order.
        whole: All members.
        scatters: The members of this worker's node, for the first stage; none without stages.
        inter: The members of this worker's place on every node; none without stages.
        gathers: The members of this worker's node again, for the last stage.
    """

    order: tuple[int, ...]
    grid: NodeGrid
    whole: Any
    scatters: Any = None
    inter: Any = None
    gathers: Any = None

    @property
    def backends(self) -> list[Any]:
        """All process groups."""
        groups = (self.whole, self.scatters, self.inter, self.gathers)
        return [group for group in groups if group is not None]


class ReplicationGroup:
    """A connected replication group; `connect` builds it.

    Args:
        member: This worker's place.
        ring: The connections; none when this worker is the only member.
    """

    def __init__(self, member: Member, ring: Ring | None):
        self.member = member
        self._ring = ring
        self._is_open = True
        self._scratch = Scratch()

    @property
    def rank(self) -> int:
        """This worker's rank in the group."""
        return self.member.rank

    @property
    def size(self) -> int:
        """Members of the group."""
        return self.member.size

    def gather_doubles(self, values: Sequence[float]) -> list[list[float]]:
        """Gather each member's vector; all members must call it.

        Returns:
            One row a member, by rank, the same on every member.

        Raises:
            ReplicationError: A member was lost, or the group is closed.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        ring = self._run(
            "all-gather of the step summary",
            lambda ring: ring.whole.allgather([rows], [mine]).wait(),
        )
        by_rank = dict(zip(ring.order, rows, strict=True))
        return [by_rank[rank].tolist() for rank in range(self.size)]

    def all_reduce(self, flat: torch.Tensor) -> None:
        """Sum a flat tensor over the group in place; all members must call it with equal shapes.

        Every member ends with the same bits. See [Note: the second hop by node].

        Raises:
            ReplicationError: A member was lost; `flat` is then undefined.
        """
        for stage in range(NUM_STAGES):
            self.run_stage(stage, flat)

    def run_stage(self, stage: int, flat: torch.Tensor) -> None:
        """Run one stage of `all_reduce`; the stages of one tensor must follow each other.

        Each stage may have a thread of its own, which takes tensors in the same order on all
        members. Without stages by node the middle one does everything.

        Args:
            stage: 0 to `NUM_STAGES` - 1.
            flat: The tensor.

        Raises:
            ReplicationError: A member was lost; `flat` is then undefined.
        """
        if self.size > 1 and flat.numel():
            work = (_scatter_inside, _reduce_across, _gather_inside)[stage]
            self._run("all-reduce of the gradient", partial(work, flat, self._scratch))

    def exchange(self, rows: torch.Tensor) -> torch.Tensor:
        """Send each member its row; all members must call it with equal shapes.

        Args:
            rows: One row a member, by rank: (N, n).

        Returns:
            The row that each member had for this one, by rank: (N, n).

        Raises:
            ReplicationError: A member was lost.
        """
        received = torch.empty_like(rows)

        def run(ring: Ring) -> None:
            ordered, by_place = rows[list(ring.order)], torch.empty_like(rows)
            ring.whole.alltoall_base(by_place.view(-1), ordered.view(-1), [], []).wait()
            received[list(ring.order)] = by_place

        if self.size == 1:
            return rows
        self._run("exchange of gradients", run)
        return received

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        """Gather a vector of each member; all members must call it with equal shapes.

        Args:
            mine: This member's (n).

        Returns:
            One row a member, by rank: (N, n).

        Raises:
            ReplicationError: A member was lost.
        """
        gathered = mine.new_empty(self.size, mine.numel())

        def run(ring: Ring) -> None:
            by_place = torch.empty_like(gathered)
            ring.whole._allgather_base(by_place.view(-1), mine.contiguous()).wait()
            gathered[list(ring.order)] = by_place

        if self.size == 1:
            return mine.view(1, -1)
        self._run("gathering of gradients", run)
        return gathered

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int) -> None:
        """Copy `tensors` from member `source` to all others; all members must call it.

        Raises:
            ReplicationError: A member was lost; `tensors` are then undefined except at the source.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = _flatten(bucket)
            self._run("copy of the model states", partial(_broadcast, flat, source))
            if self.rank != source:
                _unflatten(flat, bucket)

    def close(self) -> None:
        """Drop the connections.

        Peers that still wait for this member then fail at once instead of at their time limit, so
        every member closes the group as soon as it has seen an error. A process group in which
        another thread still waits is only closed once that ends, so each is closed on a thread of
        its own, and this does not wait for them.
        """
        self._is_open = False
        ring, self._ring = self._ring, None
        for backend in ring.backends if ring is not None else []:
            Thread(target=_close, args=(backend,), name="closing", daemon=True).start()

    def _run(self, what: str, collective: Callable[[Ring], object]) -> Ring:
        ring = self._ring
        if not self._is_open or ring is None:
            raise ReplicationError(
                f"The {what} cannot run: generation {self.member.generation} is closed."
            )
        try:
            collective(ring)
        except RuntimeError as error:
            self.close()
            raise ReplicationError(
                f"The {what} broke in replication group {self.member.replication_index} of"
                f" generation {self.member.generation}: {_first_line(error)}"
            ) from None
        return ring


def _close(backend: Any) -> None:
    backend.abort()
    backend.shutdown()


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    used_bytes = 0
    for tensor in tensors:
        full = used_bytes + tensor.nbytes > _COPY_BUCKET_BYTES
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, used_bytes = [], 0
        if tensor.numel():
            bucket.append(tensor)
            used_bytes += tensor.nbytes
    if bucket:
        yield bucket


def connect(
    address: StoreAddress,
    member: Member,
    *,
    superseded: Callable[[], bool],
    timeout_s: float,
) -> ReplicationGroup:
    """Meet the other members at the generation's store and connect to them.

    Every member of the replication group must call it. It waits for as long as it takes the others
    to reach their step boundary, unless a newer generation is announced meanwhile.

    Args:
        address: The generation's store.
        member: This worker's place.
        superseded: Whether a newer generation has been announced.
        timeout_s: Time limit of connecting, and later of each collective.

    Raises:
        ReplicationError: The store or a member cannot be reached, or the generation is superseded.
    """
    if member.size == 1:
        return ReplicationGroup(member, None)
    timeout = timedelta(seconds=timeout_s)
    prefix = f"generation-{member.generation}/replication-{member.replication_index}"
    try:
        store = TCPStore(
            address.host, address.port, is_master=False, wait_for_workers=False, timeout=timeout
        )
        here = PrefixStore(f"{prefix}/here", store)
        here.set(str(member.rank), f"node {member.node}")
        keys = [str(rank) for rank in range(member.size)]
        _wait_for_all(here, keys, member, superseded)
        nodes = [here.get(key).decode() for key in keys]
        ring = _connect_ring(PrefixStore(f"{prefix}/group", store), member, nodes, timeout)
    except RuntimeError as error:
        raise ReplicationError(
            f"Replication group {member.replication_index} of generation {member.generation}"
            f" cannot connect at {address.host}:{address.port}: {_first_line(error)}"
        ) from None
    return ReplicationGroup(member, ring)


def _wait_for_all(
    store: Store, keys: list[str], member: Member, superseded: Callable[[], bool]
) -> None:
    while not superseded():
        try:
            store.wait(keys, _RENDEZVOUS_SLICE)
        except dist.DistStoreError:
            continue  # not all here yet; look again whether it is still worth waiting
        return
    raise ReplicationError(
        f"Generation {member.generation} was superseded while its members gathered."
    )


def _connect_ring(store: Store, member: Member, nodes: list[str], timeout: timedelta) -> Ring:
    order = sorted(range(member.size), key=lambda rank: (nodes.index(nodes[rank]), rank))
    grid = node_grid([nodes[rank] for rank in order])
    place = order.index(member.rank)

    def connected(name: str, places: range) -> Any:
        return dist.ProcessGroupGloo(
            PrefixStore(name, store), places.index(place), len(places), timeout
        )

    whole = connected("whole", range(member.size))
    if not grid.has_stages:
        return Ring(tuple(order), grid, whole)
    node, local = divmod(place, grid.workers_per_node)
    return Ring(
        tuple(order),
        grid,
        whole,
        scatters=connected(f"scatters-{node}", grid.row(node)),
        inter=connected(f"inter-{local}", grid.column(local)),
        gathers=connected(f"gathers-{node}", grid.row(node)),
    )


def _parts(flat: torch.Tensor, ring: Ring) -> torch.Tensor:
    """Return the part of each of a node's members: a row each, of equal length."""
    length = flat.numel() // ring.grid.workers_per_node
    return flat[: ring.grid.workers_per_node * length].view(ring.grid.workers_per_node, length)


def _scatter_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.scatters is None:
        return
    parts = _parts(flat, ring)
    if not parts.numel():
        return
    mine = parts[ring.scatters.rank()]
    received = scratch.take(flat, parts.numel())
    # gloo's own reduce-scatter sends twice the bytes; see [Note: collectives in stages].
    ring.scatters.alltoall_base(received, parts.view(-1), [], []).wait()
    rows = received.view_as(parts)
    torch.add(rows[0], rows[1], out=mine)
    for row in rows[2:]:
        mine.add_(row)


def _reduce_across(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.inter is None:
        ring.whole.allreduce([flat]).wait()
        return
    parts = _parts(flat, ring)
    if parts.numel():
        ring.inter.allreduce([parts[ring.scatters.rank()]]).wait()
    if rest := flat.numel() - parts.numel():
        # Callers pad their buffers (`mics_core.engine.gradients`), so this is rare and small.
        ring.whole.allreduce([flat[-rest:]]).wait()


def _gather_inside(flat: torch.Tensor, scratch: Scratch, ring: Ring) -> None:
    if ring.gathers is None:
        return
    parts = _parts(flat, ring)
    if parts.numel():
        ring.gathers._allgather_base(parts.view(-1), parts[ring.gathers.rank()]).wait()


def _broadcast(flat: torch.Tensor, source: int, ring: Ring) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = ring.order.index(source)
    ring.whole.broadcast([flat], options).wait()


def _flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if len(tensors) == 1 and tensors[0].is_contiguous():
        return tensors[0].detach().view(-1)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    if flat.data_ptr() == tensors[0].data_ptr():
        return  # a single tensor was worked on in place
    offset = 0
    for tensor in tensors:
        tensor.detach().copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
