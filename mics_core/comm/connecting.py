"""Connecting the members of a replication group to each other, once for each generation.

Everything here waits for others, and is given up once a newer generation is known: see [Note:
giving up a connection] in `abandoned`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from threading import Event

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from mics_core.comm.abandoned import GivenUpError, first_line, unless
from mics_core.comm.connections import Connections
from mics_core.comm.gathering import ANSWER, Missing, gather, nobody_listens, reach
from mics_core.comm.nodes import node_grid
from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.ring import NUM_DOORS, Ring
from mics_core.comm.shared import Offer, SharedMemory
from mics_core.comm.store import MeetingStore
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError

__all__ = ["connect"]

_GRACE_S = 0.5
_SEPARATOR = "\n"


def connect(
    address: StoreAddress,
    member: Member,
    *,
    superseded: Callable[[], bool],
    timeout_s: float,
    copies: bool = False,
    missing: Missing = nobody_listens,
    memory: SharedMemory | None = None,
) -> ReplicationGroup:
    """Meet the other members at the generation's store and connect to them.

    Every member of the replication group must call it. It waits for as long as it takes the others
    to do so, unless a newer generation is announced meanwhile.

    Args:
        address: The generation's store.
        member: This worker's place.
        superseded: Whether a newer generation has been announced.
        timeout_s: Time limit of connecting, and later of each collective.
        copies: Whether to connect for a copy of the model states too; all must say the same.
        missing: Is told who is waited for, here and later when all assemble.
        memory: What holds the buffers of the all-reduces, if other members on this node may read
            it: [Note: the second hop in shared memory] in `ring`.

    Raises:
        ReplicationError: The store or a member cannot be reached, or the generation is superseded.
    """
    if member.size == 1:
        return ReplicationGroup(member, None)
    timeout = timedelta(seconds=timeout_s)
    prefix = f"generation-{member.generation}/replication-{member.replication_index}"
    offer = Offer.of(memory)
    try:
        store = unless(superseded, lambda given_up: reach(address, given_up, timeout, missing))
        door = MeetingStore(address.host, address.port, timeout, ANSWER)
        here = PrefixStore(f"{prefix}/here", door)
        rank, size = member.rank, member.size
        word = _SEPARATOR.join((member.node, offer.name if offer is not None else ""))
        unless(superseded, lambda given_up: gather(here, rank, size, word, given_up, missing))
        words = [here.get(str(rank)).decode().split(_SEPARATOR) for rank in range(member.size)]
        group = PrefixStore(f"{prefix}/group", store)
        ring = unless(
            superseded,
            lambda given_up: _connect_ring(group, member, words, timeout, offer, given_up),
            grace_s=_GRACE_S,
        )

        def connect_copies() -> Connections:
            # Named here, the store lives as long as the group: torch alone would not hold its
            # Python part.
            meeting = PrefixStore(f"{prefix}/copies", store)
            return Connections(dist.ProcessGroupGloo(meeting, member.rank, member.size, timeout))

        opened = None
        if copies:
            try:
                opened = unless(superseded, lambda _: connect_copies(), grace_s=_GRACE_S)
            except BaseException:
                ring.close()
                raise
    except GivenUpError:
        raise ReplicationError(
            f"Generation {member.generation} was superseded while its members gathered."
        ) from None
    except RuntimeError as error:
        raise ReplicationError(
            f"Replication group {member.replication_index} of generation {member.generation}"
            f" cannot connect at {address.host}:{address.port}: {first_line(error)}"
        ) from None
    finally:
        if offer is not None:
            offer.close()
    return ReplicationGroup(
        member,
        ring,
        PrefixStore(f"{prefix}/there", door),
        connect_copies,
        opened,
        missing,
        door,
    )


def _connect_ring(
    store: Store,
    member: Member,
    words: Sequence[Sequence[str]],
    timeout: timedelta,
    offer: Offer | None,
    given_up: Event,
) -> Ring:
    nodes, names = zip(*words, strict=True)
    order = sorted(range(member.size), key=lambda rank: (nodes.index(nodes[rank]), rank))
    grid = node_grid([nodes[rank] for rank in order])
    place = order.index(member.rank)
    node, local = divmod(place, grid.workers_per_node)

    def connected(name: str, places: range) -> Connections:
        return Connections(
            dist.ProcessGroupGloo(
                PrefixStore(name, store), places.index(place), len(places), timeout
            )
        )

    ring = Ring(tuple(order), grid, connected("whole", range(member.size)))
    if grid.workers_per_node > 1 and all(names):
        assert offer is not None, "this member has a name too"
        here = [names[order[other]] for other in grid.row(node)]
        neighbours = offer.meet(
            here,
            local,
            num_doors=NUM_DOORS,
            timeout_s=timeout.total_seconds(),
            all_agree=partial(_all_agree, ring),
            given_up=given_up,
        )
        ring = replace(ring, neighbours=neighbours)
    if grid.has_stages:
        ring = replace(ring, inter=connected(f"inter-{local}", grid.column(local)))
        if ring.neighbours is None:
            ring = replace(
                ring,
                scatters=connected(f"scatters-{node}", grid.row(node)),
                gathers=connected(f"gathers-{node}", grid.row(node)),
            )
    return ring


def _all_agree(ring: Ring, is_ready: bool) -> bool:
    """Whether all members on all nodes are: memory is shared inside each node, or nowhere."""
    num_failed = torch.tensor([float(not is_ready)])
    ring.whole.group.allreduce([num_failed]).wait()
    return not num_failed.item()
