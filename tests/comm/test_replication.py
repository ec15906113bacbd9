"""The collectives of a replication group between real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mics_core.comm.replication import Member, ReplicationGroup, connect
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


def connect_all(members: list[MemberProcess]) -> None:
    port = members[0].call(host_store)
    assert ask_all(members, enter, len(members), port) == [None] * len(members)


def host_store(things: Things) -> int:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    things["store"] = store
    return int(store.port)


def enter(things: Things, place: int, size: int, port: int) -> None:
    if "group" in things:
        things.pop("group").close()
    member = Member(generation=1, replication_index=0, rank=place, size=size)
    things["group"] = connect(
        StoreAddress("127.0.0.1", port), member, superseded=lambda: False, timeout_s=TIMEOUT_S
    )


def gather(things: Things, place: int) -> list[list[float]]:
    group: ReplicationGroup = things["group"]
    return group.gather_doubles([place, place / 3, 2.0**53])


def test_a_gather_has_one_row_a_member_in_their_order(members: list[MemberProcess]) -> None:
    expected = [[float(place), place / 3, 2.0**53] for place in range(len(members))]
    assert ask_all(members, gather) == [expected] * len(members)


def tensors_of(place: int) -> list[torch.Tensor]:
    """Tensors of many shapes; every member's differ, and no order of summation is exact."""
    random = torch.Generator().manual_seed(place)
    shapes = [(3,), (0,), (2, 5), (), (7, 3, 2), (1000,), (0, 4), (1,)]
    kinds = [torch.float32, torch.float32, torch.float64, torch.float64, torch.float32]
    return [
        torch.randn(shape, generator=random, dtype=kinds[index % len(kinds)])
        for index, shape in enumerate(shapes)
    ]


def all_reduce(things: Things, place: int, bucket_bytes: int) -> list[torch.Tensor]:
    tensors = tensors_of(place)
    pointers = [tensor.data_ptr() for tensor in tensors]
    group: ReplicationGroup = things["group"]
    group._bucket_bytes = bucket_bytes
    group.all_reduce(tensors)
    assert pointers == [tensor.data_ptr() for tensor in tensors]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("bucket_bytes", [1, 100, 32 << 20])
def test_an_all_reduce_sums_every_tensor_in_place_and_to_the_same_bits_everywhere(
    members: list[MemberProcess], bucket_bytes: int
) -> None:
    results = ask_all(members, all_reduce, bucket_bytes)
    columns = zip(*(tensors_of(place) for place in range(len(members))), strict=True)
    expected = [torch.stack([*column]).double().sum(0) for column in columns]
    for tensors in results:
        for ours, first, gold in zip(tensors, results[0], expected, strict=True):
            assert ours.dtype == first.dtype
            assert torch.equal(ours, first)
            torch.testing.assert_close(ours.double(), gold, rtol=1e-6, atol=1e-6)


def all_reduce_views(things: Things, place: int) -> torch.Tensor:
    """Sum the columns of a matrix, which do not lie together in memory."""
    matrix = torch.arange(12.0).view(3, 4) * (place + 1)
    things["group"].all_reduce([matrix[:, 1], matrix.t()[2], matrix[1:2, 3:]])
    return matrix.clone()


def test_an_all_reduce_reaches_tensors_that_are_not_contiguous(
    members: list[MemberProcess],
) -> None:
    results = ask_all(members, all_reduce_views)
    factor = sum(range(1, len(members) + 1))
    for place, matrix in enumerate(results):
        gold = torch.arange(12.0).view(3, 4) * (place + 1)
        gold[:, 1:3] = torch.arange(12.0).view(3, 4)[:, 1:3] * factor
        gold[1, 3] = 7.0 * factor
        assert torch.equal(matrix, gold)


def all_reduce_one_huge(things: Things, place: int) -> tuple[float, float, bool]:
    huge = torch.full((5_000_000,), float(place + 1))
    pointer = huge.data_ptr()
    things["group"]._bucket_bytes = 1 << 20
    things["group"].all_reduce([huge])
    return huge.min().item(), huge.max().item(), pointer == huge.data_ptr()


def test_one_tensor_larger_than_a_bucket_is_reduced_in_place(members: list[MemberProcess]) -> None:
    total = float(sum(range(1, len(members) + 1)))
    assert ask_all(members, all_reduce_one_huge) == [(total, total, True)] * len(members)


def broadcast(things: Things, place: int, source: int) -> list[torch.Tensor]:
    tensors = [*tensors_of(place), torch.full((2, 2), place).t()]
    things["group"].broadcast(tensors, source)
    return [tensor.clone() for tensor in tensors]


def test_a_broadcast_copies_the_bits_of_any_source(members: list[MemberProcess]) -> None:
    for source in range(len(members)):
        gold = [*tensors_of(source), torch.full((2, 2), source)]
        for tensors in ask_all(members, broadcast, source):
            assert all(torch.equal(a, b) for a, b in zip(tensors, gold, strict=True))


def sum_and_close(things: Things, place: int) -> float:
    values = torch.full((100_000,), float(place))
    group: ReplicationGroup = things["group"]
    group.gather_doubles([place])
    group.all_reduce([values])
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
    group.all_reduce([values])
    group.broadcast([values], 0)
    assert group.gather_doubles([4.0, 2.0]) == [[4.0, 2.0]]
    assert torch.equal(values, torch.ones(3))
    group.close()
