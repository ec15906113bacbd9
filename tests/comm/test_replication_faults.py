"""What members of a replication group see when one of them, or the store, is lost."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import PrefixStore

from mics_core.comm.connecting import connect
from mics_core.comm.replication import Member, ReplicationGroup
from mics_core.comm.store import MeetingStore, host_store
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError
from tests.comm.members import MemberProcess, Things, ask_all, member_processes, seconds_since
from tests.comm.test_replication import begin, connect_all

SOON_S = 2.0
AT_ONCE_S = 0.4
SIZE = 4


@pytest.fixture
def members() -> Iterator[list[MemberProcess]]:
    with member_processes(SIZE) as processes:
        yield processes


def reduce_until_it_breaks(things: Things, place: int) -> tuple[float, str]:
    """All-reduce again and again; say when the first round is done, and return when it broke."""
    group: ReplicationGroup = things["group"]
    values = torch.ones(4_000_000)
    try:
        for number in range(1_000_000):
            group.all_reduce(values)
            if number == 0:
                things.say("under way")
    except ReplicationError as error:
        return time.monotonic(), str(error)
    raise AssertionError("nobody was lost")


@pytest.mark.parametrize("lost", [0, 2])
def test_all_survivors_of_a_kill_in_the_middle_of_an_all_reduce_know_within_two_seconds(
    members: list[MemberProcess], lost: int
) -> None:
    connect_all(members)
    for answer in ask_all(members, reduce_until_it_breaks):
        assert answer == "under way"
    killed = time.monotonic()
    members[lost].kill()
    survivors = [member for place, member in enumerate(members) if place != lost]
    for survivor in survivors:
        broken, error = survivor.answer()
        assert broken - killed < SOON_S
        assert error.startswith(
            "The all-reduce of the gradient broke in replication group 0 of generation 1: "
        )
        assert "\n" not in error
    # They are as good as new: the next generation works.
    connect_all(survivors)
    assert ask_all(survivors, gather_places) == [[[0.0], [1.0], [2.0]]] * 3


def gather_places(things: Things, place: int) -> list[list[float]]:
    group: ReplicationGroup = things["group"]
    return group.gather_doubles([place])


def wait_for_the_others(things: Things, place: int) -> float:
    things.say("waiting")
    try:
        things["group"].gather_doubles([place])
    except ReplicationError:
        return time.monotonic()
    raise AssertionError("nobody closed")


def close_group(things: Things) -> None:
    things["group"].close()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_member_that_closes_wakes_up_all_who_wait_for_it(
    members: list[MemberProcess], size: int
) -> None:
    chosen = members[:size]
    connect_all(chosen)
    for place, member in enumerate(chosen[1:], start=1):
        member.begin(wait_for_the_others, place)
    assert [member.answer() for member in chosen[1:]] == ["waiting"] * (size - 1)
    closed = time.monotonic()
    chosen[0].call(close_group)
    for member in chosen[1:]:
        assert member.answer() - closed < AT_ONCE_S


def wait_for_one(things: Things, other: int) -> float:
    """Wait for another member alone; return when that broke."""
    group: ReplicationGroup = things["group"]
    things.say("waiting")
    with pytest.raises(ReplicationError):
        group._run(
            "test",
            lambda ring: ring.whole.group.recv([torch.empty(1)], other, 0).wait(),
        )
    return time.monotonic()


def test_who_waits_for_a_survivor_alone_knows_of_a_loss_as_soon_as_that_one(
    members: list[MemberProcess],
) -> None:
    """gloo tells nobody but those who wait for the lost one: these close, which tells the rest."""
    connect_all(members)
    for place, member in enumerate(members[:-1]):
        member.begin(wait_for_one, place + 1)
    assert [member.answer() for member in members[:-1]] == ["waiting"] * (SIZE - 1)
    killed = time.monotonic()
    members[-1].kill()
    for member in members[:-1]:
        assert member.answer() - killed < AT_ONCE_S


def rendezvous(
    host: str, port: int, *, superseded: Any = lambda: False, timeout_s: float = 30.0
) -> ReplicationGroup:
    return connect(
        StoreAddress(host, port),
        Member(generation=7, replication_index=3, rank=0, size=2),
        superseded=superseded,
        timeout_s=timeout_s,
    )


def test_a_superseded_rendezvous_ends_promptly() -> None:
    store = host_store("127.0.0.1")
    looks = iter([False, False, True])
    start = time.monotonic()
    with pytest.raises(ReplicationError) as raised:
        rendezvous("127.0.0.1", store.port, superseded=lambda: next(looks))
    assert seconds_since(start) < SOON_S
    assert str(raised.value) == "Generation 7 was superseded while its members gathered."


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_store_that_is_not_there_is_named_with_its_address() -> None:
    port = free_port()
    with pytest.raises(ReplicationError, match=f"cannot connect at 127.0.0.1:{port}: "):
        rendezvous("127.0.0.1", port, timeout_s=1)


def wait_at_store(things: Things, port: int) -> tuple[float, str]:
    looks = 0

    def superseded() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            things.say("waiting")
        return looks > 40  # ten seconds: the store's loss must be seen sooner

    with pytest.raises(ReplicationError) as raised:
        rendezvous("127.0.0.1", port, superseded=superseded)
    return time.monotonic(), str(raised.value)


def test_a_store_that_dies_while_members_gather_is_named_with_its_address(
    members: list[MemberProcess],
) -> None:
    port = members[0].call(begin)
    members[1].begin(wait_at_store, port)
    assert members[1].answer() == "waiting"
    killed = time.monotonic()
    members[0].kill()
    seen, error = members[1].answer()
    assert seen - killed < SOON_S
    assert f"of generation 7 cannot connect at 127.0.0.1:{port}: " in error


def arrive_only(things: Things, port: int) -> None:
    """Come to the store as a member does, and connect to nobody, as one that dies just then."""
    store = things["client"] = MeetingStore("127.0.0.1", port)
    PrefixStore("generation-7/replication-3/here", store).set("1", "a\n")


def test_a_member_that_dies_on_its_way_from_the_store_holds_nobody_up_once_that_is_known(
    members: list[MemberProcess],
) -> None:
    store = host_store("127.0.0.1")
    members[0].call(arrive_only, store.port)
    members[0].kill()
    begin = time.monotonic()
    with pytest.raises(ReplicationError, match="Generation 7 was superseded while its members"):
        rendezvous("127.0.0.1", store.port, superseded=lambda: time.monotonic() > begin + 0.5)
    assert seconds_since(begin) < SOON_S


@pytest.mark.parametrize("what", ["gather_doubles", "open_copies"])
def test_a_member_that_never_comes_holds_nobody_up_once_that_is_known(
    members: list[MemberProcess], what: str
) -> None:
    connect_all(members[:2])
    waited, error = members[0].call(wait_unless_superseded, what)
    assert waited < SOON_S
    assert error.startswith("Generation 1 was superseded during the ")


def wait_unless_superseded(things: Things, what: str) -> tuple[float, str]:
    begin = time.monotonic()

    def superseded() -> bool:
        return time.monotonic() > begin + 0.5

    group: ReplicationGroup = things["group"]
    waits = {
        "open_copies": partial(group.open_copies, superseded),
        "gather_doubles": partial(group.gather_doubles, [1.0], superseded),
    }
    with pytest.raises(ReplicationError) as raised:
        waits[what]()
    return seconds_since(begin), str(raised.value)


def test_no_process_is_left_over() -> None:
    with member_processes(2) as members:
        connect_all(members)
        for place, member in enumerate(members):
            member.begin(reduce_until_it_breaks, place)
        assert [member.answer() for member in members] == ["under way"] * 2
    assert not any(member.is_alive for member in members)
