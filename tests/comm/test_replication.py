"""The collectives of a replication group between real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mics_core.comm.connecting import connect
from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.store import host_store
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError
from tests.comm.members import MemberProcess, Things, ask_all, member_processes

MOST = 4
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def processes() -> Iterator[list[MemberProcess]]:
    with member_processes(MOST) as members:
        yield members


@pytest.fixture(params=[2, 3, 4])
def members(processes: list[MemberProcess], request: pytest.FixtureRequest) -> list[MemberProcess]:
    """Connected members; each process keeps its group."""
    chosen = processes[: request.param]
    connect_all(chosen)
    return chosen


def connect_all(members: list[MemberProcess], nodes: list[str] | None = None) -> None:
    port = members[0].call(begin)
    answers = ask_all(members, enter, len(members), port, nodes or [""] * len(members))
    assert answers == [None] * len(members)


def begin(things: Things) -> int:
    store = host_store("127.0.0.1")
    things["store"] = store
    return int(store.port)


def enter(things: Things, place: int, size: int, port: int, nodes: list[str]) -> None:
    if "group" in things:
        things.pop("group").close()
    member = Member(generation=1, replication_index=0, rank=place, size=size, node=nodes[place])
    things["group"] = connect(
        StoreAddress("127.0.0.1", port), member, superseded=lambda: False, timeout_s=TIMEOUT_S
    )


def gather(things: Things, place: int) -> list[list[float]]:
    group: ReplicationGroup = things["group"]
    return group.gather_doubles([place, place / 3, 2.0**53])


def test_a_gather_has_one_row_a_member_in_their_order(members: list[MemberProcess]) -> None:
    expected = [[float(place), place / 3, 2.0**53] for place in range(len(members))]
    assert ask_all(members, gather) == [expected] * len(members)


def flat_of(place: int, num_elements: int) -> torch.Tensor:
    """Values of one member; no order of summation is exact."""
    return torch.randn(num_elements, generator=torch.Generator().manual_seed(place))


def all_reduce(things: Things, place: int, num_elements: int) -> torch.Tensor:
    whole = torch.cat([torch.ones(3), flat_of(place, num_elements), torch.ones(3)])
    group: ReplicationGroup = things["group"]
    group.all_reduce(whole[3:-3])
    assert torch.equal(whole[:3], torch.ones(3))
    assert torch.equal(whole[-3:], torch.ones(3))
    return whole[3:-3].clone()


def check_all_reduce(members: list[MemberProcess], num_elements: int) -> None:
    results = ask_all(members, all_reduce, num_elements)
    gold = sum(flat_of(place, num_elements).double() for place in range(len(members)))
    for ours in results:
        assert torch.equal(ours, results[0])  # every member has the same bits
        torch.testing.assert_close(ours.double(), gold, rtol=1e-6, atol=1e-6)


SIZES = [0, 1, 2, 3, 1680, 100_001, 3_000_000]


@pytest.mark.parametrize("num_elements", SIZES)
def test_an_all_reduce_sums_in_place_and_to_the_same_bits_everywhere(
    members: list[MemberProcess], num_elements: int
) -> None:
    check_all_reduce(members, num_elements)


# Nodes of the members; with equal numbers on several nodes the all-reduce goes in stages.
NODES = [
    (["a", "a", "b", "b"], (2, 2)),
    (["a", "b", "a", "b"], (2, 2)),
    (["b", "a", "c", "d"], (4, 1)),
    (["a", "b", "a", "a"], (4, 1)),
    (["a", "a", "a", "a"], (1, 4)),
]


@pytest.mark.parametrize(("nodes", "grid"), NODES, ids=lambda value: "".join(map(str, value)))
def test_members_of_one_node_reduce_among_themselves_first(
    processes: list[MemberProcess], nodes: list[str], grid: tuple[int, int]
) -> None:
    connect_all(processes, nodes)
    for num_elements in SIZES:
        check_all_reduce(processes, num_elements)
    rows = [[float(place), place / 3, 2.0**53] for place in range(MOST)]
    assert ask_all(processes, gather) == [rows] * MOST
    assert ask_all(processes, grid_of) == [grid] * MOST


def grid_of(things: Things, place: int) -> tuple[int, int]:
    ring = things["group"]._ring
    assert (ring.inter is not None) == ring.grid.has_stages
    return ring.grid.num_nodes, ring.grid.workers_per_node


def sum_and_close(things: Things, place: int) -> float:
    values = torch.full((100_000,), float(place))
    group: ReplicationGroup = things["group"]
    group.gather_doubles([place])
    group.all_reduce(values)
    group.close()
    return float(values.mean())


def test_a_member_that_closes_after_the_last_collective_breaks_it_under_nobody(
    processes: list[MemberProcess],
) -> None:
    for _ in range(15):
        connect_all(processes)
        assert ask_all(processes, sum_and_close) == [6.0] * MOST


def use_closed(things: Things, place: int) -> None:
    group: ReplicationGroup = things["group"]
    group.close()
    group.close()
    group.gather_doubles([1.0])


def test_a_closed_group_refuses_and_names_its_generation(members: list[MemberProcess]) -> None:
    for error in ask_all(members, use_closed):
        assert isinstance(error, ReplicationError)
        assert str(error) == (
            "The all-gather of the step summary cannot run: generation 1 is closed."
        )


def test_a_member_without_peers_needs_no_connection() -> None:
    nowhere = StoreAddress("127.0.0.1", 1)
    group = connect(nowhere, Member(1, 0, 0, 1), superseded=lambda: False, timeout_s=1)
    values = torch.ones(3)
    group.all_reduce(values)
    assert group.gather_doubles([4.0, 2.0]) == [[4.0, 2.0]]
    assert torch.equal(values, torch.ones(3))
    group.close()
