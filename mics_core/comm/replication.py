"""The replication group: workers that hold the same shard in different partition groups.

It lives outside `torch.distributed`'s world, because its members belong to different Ray Train runs
and because it must be replaceable while the process lives: one object for each generation, dropped
when a member is lost. Anything that goes wrong here surfaces as `ReplicationError`; the survivors
then enter the next generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from mics_core.comm.abandoned import GivenUpError, unless
from mics_core.comm.copies import Copies, close_backend
from mics_core.comm.ring import STAGES, Ring, connect_ring
from mics_core.comm.stages import Scratch
from mics_core.comm.store import MeetingStore
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError

__all__ = ["NUM_STAGES", "Member", "ReplicationGroup", "connect"]

_RETRY_S = 0.05
_RENDEZVOUS_SLICE = timedelta(milliseconds=250)
_GRACE_S = 0.5

NUM_STAGES = len(STAGES)
"""Stages of an all-reduce; each has process groups of its own."""


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


class ReplicationGroup:
    """A connected replication group; `connect` builds it.

    Args:
        member: This worker's place.
        ring: The connections; none when this worker is the only member.
        store: Where the members meet.
        connect_copies: Builds further ones, a process group of all members by rank.
        connect_among: Builds the ring of some members, of which this is one.
    """

    def __init__(
        self,
        member: Member,
        ring: Ring | None,
        store: Store | None = None,
        connect_copies: Callable[[], Any] | None = None,
        connect_among: Callable[[tuple[int, ...]], Ring] | None = None,
    ):
        self.member = member
        self._ring = ring
        self._store = store
        self._connect_copies = connect_copies
        self._connect_among = connect_among
        self._copies: Any = None
        self._among: tuple[tuple[int, ...], Ring] | None = None
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

    def assemble(self, superseded: Callable[[], bool]) -> None:
        """Wait, for as long as it takes, until all members have called this.

        Args:
            superseded: Whether a newer generation has been announced.

        Raises:
            ReplicationError: The store is lost, or the generation is superseded.
        """
        store = self._store
        if store is None:
            return
        what = f"assembling of generation {self.member.generation}"
        try:
            unless(superseded, lambda given_up: _gather(store, self.member, given_up))
        except GivenUpError:
            self.close()
            raise ReplicationError(f"The {what} was superseded.") from None
        except RuntimeError as error:
            self.close()
            raise ReplicationError(f"The {what} broke: {_first_line(error)}") from None

    def gather_doubles(
        self, values: Sequence[float], superseded: Callable[[], bool] | None = None
    ) -> list[list[float]]:
        """Gather each member's vector; all members must call it.

        Args:
            values: This member's.
            superseded: Whether a newer generation has been announced, so that the others may never
                come; without it they are waited for.

        Returns:
            One row a member, by rank, the same on every member.

        Raises:
            ReplicationError: A member was lost, or the group is closed or superseded.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        ring = self._run(
            "all-gather of the step summary",
            lambda ring: ring.whole.allgather([rows], [mine]).wait(),
            superseded,
        )
        by_rank = dict(zip(ring.order, rows, strict=True))
        return [by_rank[rank].tolist() for rank in range(self.size)]

    def all_reduce(self, flat: torch.Tensor) -> None:
        """Sum a flat tensor over the group in place; all members must call it with equal shapes.

        Every member ends with the same bits. See [Note: the second hop by node] in `ring`.

        Raises:
            ReplicationError: A member was lost; `flat` is then undefined.
        """
        for stage in range(NUM_STAGES):
            self.run_stage(stage, flat)

    def run_stage(self, stage: int, flat: torch.Tensor, *, among_some: bool = False) -> None:
        """Run one stage of `all_reduce`; the stages of one tensor must follow each other.

        Each stage may have a thread of its own, which takes tensors in the same order on all
        members. Without stages by node the middle one does everything.

        Args:
            stage: 0 to `NUM_STAGES` - 1.
            flat: The tensor.
            among_some: Whether it is those of `reduce_among` alone that sum it up.

        Raises:
            ReplicationError: A member was lost; `flat` is then undefined.
        """
        among = self._among  # before `_is_open`, which is cleared before it
        if among_some and among is None and self._is_open:
            return  # this is the only one
        if self.size > 1 and flat.numel():
            run = partial(STAGES[stage], flat, self._scratch)
            self._run(
                "all-reduce of the gradient",
                lambda ring: run(among[1] if among_some and among is not None else ring),
            )

    def prepare_for(self, newcomers: Sequence[int], superseded: Callable[[], bool]) -> None:
        """Connect ahead what `open_copies` and `reduce_among` give; all members must call it.

        Args:
            newcomers: Ranks of the members that are likely to be behind.
            superseded: Whether a newer generation has been announced.

        Raises:
            ReplicationError: A member was lost, or the generation is superseded.
        """
        self._connect_for_copies(superseded)
        if self.rank not in newcomers:
            others = [rank for rank in range(self.size) if rank not in newcomers]
            self.reduce_among(others, superseded)

    def reduce_among(self, ranks: Sequence[int], superseded: Callable[[], bool]) -> None:
        """Have some members ready to sum up tensors among themselves; all of these must call it.

        Args:
            ranks: Their ranks, this member's among them.
            superseded: Whether a newer generation has been announced.

        Raises:
            ReplicationError: A member was lost, or the generation is superseded.
        """
        wanted = tuple(ranks)
        if self._among is not None and self._among[0] == wanted:
            return
        self.reduce_among_all()
        if len(wanted) == 1:
            return
        assert self._connect_among is not None
        connect, connected = self._connect_among, list[Ring]()
        self._run(
            "connecting of the members that hold the model states",
            lambda _: connected.append(connect(wanted)),
            superseded,
        )
        self._among = (wanted, connected[0])

    def reduce_among_all(self) -> None:
        """Drop the connections of `reduce_among`."""
        among, self._among = self._among, None
        if among is not None:
            among[1].close()

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

    def open_copies(self, superseded: Callable[[], bool]) -> Copies:
        """Return connections for copies of model states; all members must call it.

        Those that were connected with the others come first; further ones are connected now.

        Args:
            superseded: Whether a newer generation has been announced.

        Raises:
            ReplicationError: A member was lost, or the generation is superseded.
        """
        if self._copies is None or not self._is_open:
            self._connect_for_copies(superseded)
        copies, self._copies = self._copies, None
        return Copies(copies)

    def limit_collectives(self, timeout_s: float) -> None:
        """Set the time limit of every collective that begins from now on."""
        rings = (self._ring, self._among[1] if self._among is not None else None)
        for backend in (backend for ring in rings if ring is not None for backend in ring.backends):
            backend._set_default_timeout(timedelta(seconds=timeout_s))

    def close(self) -> None:
        """Drop the connections.

        Peers that still wait for this member then fail at once instead of at their time limit, so
        every member closes the group as soon as it has seen an error. A process group in which
        another thread still waits is only closed once that ends, so each is closed on a thread of
        its own, and this does not wait for them.
        """
        self._is_open = False
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()
        self.reduce_among_all()
        copies, self._copies = self._copies, None
        if copies is not None:
            close_backend(copies)

    def _connect_for_copies(self, superseded: Callable[[], bool]) -> None:
        assert self._connect_copies is not None
        connect, opened = self._connect_copies, list[Any]()
        self._run(
            "connecting for copies of the model states",
            lambda _: opened.append(connect()),
            superseded,
        )
        (self._copies,) = opened

    def _run(
        self,
        what: str,
        collective: Callable[[Ring], object],
        superseded: Callable[[], bool] | None = None,
    ) -> Ring:
        ring = self._ring
        if not self._is_open or ring is None:
            raise ReplicationError(
                f"The {what} cannot run: generation {self.member.generation} is closed."
            )
        try:
            if superseded is None:
                collective(ring)
            else:
                unless(superseded, lambda _: collective(ring), grace_s=_GRACE_S)
        except GivenUpError:
            self.close()
            raise ReplicationError(
                f"Generation {self.member.generation} was superseded during the {what}."
            ) from None
        except RuntimeError as error:
            self.close()
            raise ReplicationError(
                f"The {what} broke in replication group {self.member.replication_index} of"
                f" generation {self.member.generation}: {_first_line(error)}"
            ) from None
        return ring


def connect(
    address: StoreAddress,
    member: Member,
    *,
    superseded: Callable[[], bool],
    timeout_s: float,
    newcomers: Sequence[int] = (),
) -> ReplicationGroup:
    """Meet the other members at the generation's store and connect to them.

    Every member of the replication group must call it. It waits for as long as it takes the others
    to do so, unless a newer generation is announced meanwhile.

    Args:
        address: The generation's store.
        member: This worker's place.
        superseded: Whether a newer generation has been announced.
        timeout_s: Time limit of connecting, and later of each collective.
        newcomers: Ranks of members that will copy the model states: connections for that are made
            too, and such that the others can sum up gradients without them. All must say the same.

    Raises:
        ReplicationError: The store or a member cannot be reached, or the generation is superseded.
    """
    if member.size == 1:
        return ReplicationGroup(member, None)
    timeout = timedelta(seconds=timeout_s)
    prefix = f"generation-{member.generation}/replication-{member.replication_index}"
    try:
        store = unless(superseded, lambda given_up: _reach(address, given_up, timeout))
        here = PrefixStore(f"{prefix}/here", store)
        unless(superseded, lambda given_up: _gather(here, member, given_up))
        nodes = [here.get(str(rank)).decode() for rank in range(member.size)]

        # Named here, the store lives as long as the group: torch alone would not hold its Python
        # part.
        def connect_copies() -> Any:
            copies = PrefixStore(f"{prefix}/copies", store)
            return dist.ProcessGroupGloo(copies, member.rank, member.size, timeout)

        def connect_among(ranks: tuple[int, ...]) -> Ring:
            among = PrefixStore(f"{prefix}/among-{'-'.join(map(str, ranks))}", store)
            return connect_ring(among, member.rank, ranks, nodes, timeout)

        everyone = tuple(range(member.size))
        meeting = PrefixStore(f"{prefix}/group", store)
        ring = unless(
            superseded,
            lambda _: connect_ring(meeting, member.rank, everyone, nodes, timeout),
            grace_s=_GRACE_S,
        )
    except GivenUpError:
        raise ReplicationError(
            f"Generation {member.generation} was superseded while its members gathered."
        ) from None
    except RuntimeError as error:
        raise ReplicationError(
            f"Replication group {member.replication_index} of generation {member.generation}"
            f" cannot connect at {address.host}:{address.port}: {_first_line(error)}"
        ) from None
    there = PrefixStore(f"{prefix}/there", store)
    group = ReplicationGroup(member, ring, there, connect_copies, connect_among)
    if newcomers:
        group.prepare_for(newcomers, superseded)
    return group


def _reach(address: StoreAddress, given_up: Event, timeout: timedelta) -> MeetingStore:
    """Connect to a store; its host may have died."""
    deadline = monotonic() + timeout.total_seconds()
    while True:
        try:
            return MeetingStore(address.host, address.port, timeout)
        except RuntimeError as error:
            if given_up.is_set() or monotonic() > deadline:
                raise RuntimeError(f"nobody listens: {error}") from None
            sleep(_RETRY_S)


def _gather(store: Store, member: Member, given_up: Event) -> None:
    """Wait for as long as it takes until all members are at the store."""
    store.set(str(member.rank), f"node {member.node}")
    keys = [str(rank) for rank in range(member.size)]
    while not given_up.is_set():
        try:
            store.wait(keys, _RENDEZVOUS_SLICE)
        except dist.DistStoreError:
            continue  # not all here yet
        return


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
