"""The replication group: workers that hold the same shard in different partition groups.

It lives outside `torch.distributed`'s world, because its members belong to different Ray Train runs
and because it must be replaceable while the process lives: one object for each generation, dropped
when a member is lost. Anything that goes wrong here surfaces as `ReplicationError`; the survivors
then enter the next generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch._C._distributed_c10d import Store

from mics_core.comm.abandoned import GivenUpError, first_line, unless
from mics_core.comm.connections import Connections, let_go
from mics_core.comm.copies import Copies
from mics_core.comm.gathering import Missing, gather, nobody_listens
from mics_core.comm.ring import STAGES, Ring
from mics_core.comm.stages import Scratch
from mics_core.errors import ReplicationError

__all__ = ["NUM_STAGES", "Member", "ReplicationGroup"]

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
    """A connected replication group; `mics_core.comm.connecting` builds it.

    Args:
        member: This worker's place.
        ring: The connections; none when this worker is the only member.
        store: Where the members meet.
        connect_copies: Builds further ones, a process group of all members by rank.
        copies: The first of these, if it is connected already.
        missing: Is told whom `assemble` waits for.
        keeps: What must live as long as `store` does, of which torch holds its own half alone.
    """

    def __init__(
        self,
        member: Member,
        ring: Ring | None,
        store: Store | None = None,
        connect_copies: Callable[[], Connections] | None = None,
        copies: Connections | None = None,
        missing: Missing = nobody_listens,
        keeps: object = None,
    ):
        self.member = member
        self._keeps = keeps
        self._missing = missing
        self._ring = ring
        self._store = store
        self._connect_copies = connect_copies
        self._copies = copies
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
            unless(
                superseded,
                lambda given_up: gather(store, self.rank, self.size, "", given_up, self._missing),
            )
        except GivenUpError:
            self.close()
            raise ReplicationError(f"The {what} was superseded.") from None
        except RuntimeError as error:
            self.close()
            raise ReplicationError(f"The {what} broke: {first_line(error)}") from None

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
            lambda ring: ring.whole.group.allgather([rows], [mine]).wait(),
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
            self._run("all-reduce of the gradient", partial(STAGES[stage], flat, self._scratch))

    def end_reading(self) -> None:
        """Wait until no member reads this one's buffer any more; all members must call it.

        To be called once after the last `all_reduce`, before anything is written to a buffer. See
        [Note: the second hop in shared memory] in `ring`.

        Raises:
            ReplicationError: A member was lost; the buffers are then undefined.
        """
        if self.size > 1:
            self._run("end of the second hop", Ring.end_reading)

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
            ring.whole.group.alltoall_base(by_place.view(-1), ordered.view(-1), [], []).wait()
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
            ring.whole.group._allgather_base(by_place.view(-1), mine.contiguous()).wait()
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
        assert self._connect_copies is not None
        if self._copies is not None and self._is_open:
            copies, self._copies = self._copies, None
            return Copies(copies)
        connect = self._connect_copies
        opened: list[Connections] = []
        self._run(
            "connecting for copies of the model states",
            lambda _: opened.append(connect()),
            superseded,
        )
        return Copies(opened[0])

    def limit_collectives(self, timeout_s: float) -> None:
        """Set the time limit of every collective that begins from now on."""
        if self._ring is not None:
            self._ring.limit(timeout_s)

    def close(self) -> None:
        """Drop the connections.

        Peers that still wait for this member then fail at once instead of at their time limit, so
        every member closes the group as soon as it has seen an error.
        """
        self._is_open = False
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close()

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
            let_go(error)
            self.close()
            raise ReplicationError(
                f"The {what} broke in replication group {self.member.replication_index} of"
                f" generation {self.member.generation}: {first_line(error)}"
            ) from None
        return ring
