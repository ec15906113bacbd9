"""Copies of model states between members, from several sources to several that are behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mics_core.comm.connecting import connect
from mics_core.comm.replication import Member
from mics_core.comm.store import host_store
from mics_core.elastic.plan import StoreAddress
from mics_core.engine.copying import Incoming, Outgoing, _pieces_of
from mics_core.engine.link_use import LinkUse
from mics_core.errors import ReplicationError
from tests.comm.members import MemberProcess, Things, ask_all, member_processes

MOST = 5


@pytest.fixture(scope="module")
def processes() -> Iterator[list[MemberProcess]]:
    with member_processes(MOST) as members:
        yield members


def states_of(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    large = torch.randn(3_000_001, generator=generator)  # many pieces
    return [
        large,
        torch.randn(7, 5, generator=generator).t(),  # no plain row of numbers
        torch.randn(130, generator=generator).to(torch.bfloat16),
        torch.tensor(float(seed)),
        torch.randint(0, 9, (11,), generator=generator),
        torch.empty(0),
        large[:1_000_000].double(),
    ]


@pytest.mark.parametrize("num_sources", [1, 3, 7])
def test_a_second_hop_waits_for_no_more_bytes_the_more_sources_there_are(num_sources: int) -> None:
    states = states_of(1)[:1]
    on_the_way = [next(_pieces_of(states, source, num_sources)) for source in range(num_sources)]
    assert 400_000 < sum(4 * len(part) for _, part in on_the_way) <= 1 << 19


def begin(things: Things) -> int:
    things["store"] = host_store("127.0.0.1")
    return int(things["store"].port)


def meet(things: Things, place: int, size: int, port: int) -> None:
    address = StoreAddress("127.0.0.1", port)
    things["group"] = connect(
        address, Member(1, 0, place, size), superseded=lambda: False, timeout_s=30
    )


def copy(
    things: Things, place: int, sources: list[int], listeners: list[int], beside: bool
) -> bool:
    """Copy the states of seed 1 to the listeners; whether they hold them then."""
    group = things["group"]
    copies = group.open_copies(lambda: False)
    if place in sources:
        states = states_of(1)
        outgoing = Outgoing(
            states, copies, sources.index(place), len(sources), listeners, LinkUse(), at_once=[3]
        )
        states[3].zero_()  # a buffer, which the next forward changes
        outgoing.wait_until_taken()
        for tensor in states:
            tensor.zero_()  # the steps go on; what is sent is how they were
        group.gather_doubles([0.0])  # all have received
        outgoing.close()
        return True
    states = states_of(2)
    incoming = Incoming(states, copies, sources, beside=beside)
    incoming.wait()
    assert incoming.is_complete
    assert not beside or are_those_of(2, states), "they were to stay until all have received"
    incoming.put_in_place()
    group.gather_doubles([0.0])
    incoming.close()
    return are_those_of(1, states)


def are_those_of(seed: int, states: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(states, states_of(seed), strict=True))


@pytest.mark.parametrize("beside", [False, True], ids=["in place", "beside older states"])
@pytest.mark.parametrize(
    ("sources", "listeners"),
    [([0], [1]), ([1], [0]), ([0, 2, 3], [1]), ([0], [1, 2, 3, 4]), ([1, 3], [0, 2, 4])],
)
def test_every_bit_comes_from_all_sources_to_all_that_are_behind(
    processes: list[MemberProcess], sources: list[int], listeners: list[int], beside: bool
) -> None:
    size = len(sources) + len(listeners)
    members = processes[:size]
    port = members[0].call(begin)
    assert ask_all(members, meet, size, port) == [None] * size
    assert ask_all(members, copy, sources, listeners, beside) == [True] * size


def lose_a_source(things: Things, place: int) -> list[float]:
    """The source goes after the first piece; a listener's states stay one or the other's."""
    group = things["group"]
    copies = group.open_copies(lambda: False)
    if place == 0:
        _, part = next(_pieces_of(states_of(1), 0, 1))
        copies.send(states_of(1)[0][part.start : part.stop], [1])
        copies.close()
        group.close()
        return []
    states = states_of(2)
    incoming = Incoming(states, copies, [0])
    with pytest.raises(ReplicationError, match="model states"):
        incoming.wait()
    with pytest.raises(ReplicationError):
        _ = incoming.is_complete
    incoming.close()
    return [float(states[0][0]), float(states[0][-1])]


def test_a_lost_source_ends_the_copy_at_once(processes: list[MemberProcess]) -> None:
    members = processes[:2]
    port = members[0].call(begin)
    ask_all(members, meet, 2, port)
    _, ends = ask_all(members, lose_a_source)
    assert ends == [float(states_of(1)[0][0]), float(states_of(2)[0][-1])]


def give_up(things: Things, place: int) -> bool:
    """A listener that gives up writes nothing more, though all of it still arrives."""
    group = things["group"]
    copies = group.open_copies(lambda: False)
    if place == 1:
        states = states_of(2)
        incoming = Incoming(states, copies, [0])
        incoming.close()
        group.gather_doubles([0.0])
        with pytest.raises(ReplicationError):
            incoming.wait()
        return are_those_of(2, states)
    group.gather_doubles([0.0])
    outgoing = Outgoing(states_of(1), copies, 0, 1, [1], LinkUse())
    outgoing.close()
    return True


def test_a_copy_that_is_given_up_writes_no_more(processes: list[MemberProcess]) -> None:
    members = processes[:2]
    port = members[0].call(begin)
    ask_all(members, meet, 2, port)
    assert ask_all(members, give_up) == [True, True]
