"""The replication group: workers that hold the same shard in different partition groups.

It lives outside `torch.distributed`'s world, because its members belong to different Ray Train runs
and because it must be replaceable while the process lives: one object for each generation, dropped
when a member is lost. Anything that goes wrong here surfaces as `ReplicationError`; the survivors
then enter the next generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError

__all__ = ["Member", "ReplicationGroup", "connect"]

_RENDEZVOUS_SLICE = timedelta(milliseconds=250)


@dataclass(frozen=True, slots=True)
class Member:
    """A worker's place in a replication group.

    Args:
        generation: Number of the generation the group belongs to.
        replication_index: Which replication group: the worker's rank in its partition group.
        rank: The place of the worker's partition group in the generation.
        size: Partition groups in the generation.
    """

    generation: int
    replication_index: int
    rank: int
    size: int


class ReplicationGroup:
    """A connected replication group; `connect` builds it.

    Args:
        member: This worker's place.
        backend: The connected process group (`dist.ProcessGroupGloo`, whose collectives torch's
            stubs leave out); none when this worker is the only member.
        bucket_bytes: Largest number of bytes that one collective over many tensors moves at once.
    """

    def __init__(self, member: Member, backend: Any, bucket_bytes: int = 32 << 20):
        self.member = member
        self._backend = backend
        self._bucket_bytes = bucket_bytes
        self._is_open = True

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
        self._run(
            "all-gather of the step summary",
            lambda backend: backend.allgather([rows], [mine]).wait(),
        )
        return [row.tolist() for row in rows]

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum `tensors` over the group in place; all members must call it with equal shapes.

        Tensors travel in buckets of at most `bucket_bytes`; one larger tensor is a bucket by
        itself. Every member ends with the same bits.

        Raises:
            ReplicationError: A member was lost; `tensors` are then undefined.
        """
        if self.size == 1:
            return
        for bucket in self._buckets(tensors):
            flat = _flatten(bucket)
            self._run("all-reduce of the gradient", partial(_all_reduce, flat))
            _unflatten(flat, bucket)

    def broadcast(self, tensors: Sequence[torch.Tensor], source: int) -> None:
        """Copy `tensors` from member `source` to all others; all members must call it.

        Raises:
            ReplicationError: A member was lost; `tensors` are then undefined except at the source.
        """
        if self.size == 1:
            return
        for bucket in self._buckets(tensors):
            flat = _flatten(bucket)
            self._run("copy of the model states", partial(_broadcast, flat, source))
            if self.rank != source:
                _unflatten(flat, bucket)

    def close(self) -> None:
        """Drop the connections.

        Peers that still wait for this member then fail at once instead of at their time limit, so
        every member closes the group as soon as it has seen an error.
        """
        self._is_open = False
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.abort()
            backend.shutdown()

    def _run(self, what: str, collective: Callable[[Any], object]) -> None:
        if not self._is_open or self._backend is None:
            raise ReplicationError(
                f"The {what} cannot run: generation {self.member.generation} is closed."
            )
        try:
            collective(self._backend)
        except RuntimeError as error:
            self.close()
            raise ReplicationError(
                f"The {what} broke in replication group {self.member.replication_index} of"
                f" generation {self.member.generation}: {_first_line(error)}"
            ) from None

    def _buckets(self, tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        bucket: list[torch.Tensor] = []
        used_bytes = 0
        for tensor in tensors:
            full = used_bytes + tensor.nbytes > self._bucket_bytes
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
        here.set(str(member.rank), "here")
        _wait_for_all(here, [str(rank) for rank in range(member.size)], member, superseded)
        backend = dist.ProcessGroupGloo(
            PrefixStore(f"{prefix}/group", store), member.rank, member.size, timeout
        )
    except RuntimeError as error:
        raise ReplicationError(
            f"Replication group {member.replication_index} of generation {member.generation}"
            f" cannot connect at {address.host}:{address.port}: {_first_line(error)}"
        ) from None
    return ReplicationGroup(member, backend)


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


def _all_reduce(flat: torch.Tensor, backend: Any) -> None:
    backend.allreduce([flat]).wait()


def _broadcast(flat: torch.Tensor, source: int, backend: Any) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = source
    backend.broadcast([flat], options).wait()


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
