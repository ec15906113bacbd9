"""Memory that the workers of one node share, and the second hop through it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
import torch

from mics_core.comm import shared
from mics_core.comm.connecting import connect
from mics_core.comm.replication import NUM_STAGES, Member, ReplicationGroup
from mics_core.comm.shared import Neighbours, Offer, SharedMemory
from mics_core.comm.store import host_store
from mics_core.elastic.plan import StoreAddress
from mics_core.errors import ReplicationError
from tests.comm.members import MemberProcess, Things, ask_all, member_processes

MOST = 4
TIMEOUT_S = 30.0
NUM_ELEMENTS = 3 * 10_001
ONE_NODE, TWO_NODES = "aaaa", "aabb"

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shares memory on Linux")


@pytest.fixture(scope="module")
def processes() -> Iterator[list[MemberProcess]]:
    with member_processes(MOST) as members:
        yield members


@pytest.fixture
def members(processes: list[MemberProcess], request: pytest.FixtureRequest) -> list[MemberProcess]:
    connect_all(processes, request.param)
    return processes


def connect_all(members: list[MemberProcess], nodes: str, without: Sequence[int] = ()) -> None:
    port = members[0].call(host)
    answers = ask_all(members, enter, port, nodes, without)
    assert answers == [None] * len(members)


def host(things: Things) -> int:
    things["store"] = host_store("127.0.0.1")
    return int(things["store"].port)


def enter(things: Things, place: int, port: int, nodes: str, without: Sequence[int]) -> None:
    leave(things, place)
    memory = SharedMemory(4 * NUM_ELEMENTS)
    things["flat"] = memory.bytes.view(torch.float32)
    things["group"] = connect(
        StoreAddress("127.0.0.1", port),
        Member(generation=1, replication_index=0, rank=place, size=len(nodes), node=nodes[place]),
        superseded=lambda: False,
        timeout_s=TIMEOUT_S,
        memory=None if place in without else memory,
    )


def leave(things: Things, place: int) -> None:
    if "group" in things:
        things.pop("group").close()
        things.pop("flat")


def shares(things: Things, place: int) -> bool:
    ring = things["group"]._ring
    assert (ring.scatters is None) or (ring.neighbours is None)
    return ring.neighbours is not None


def values_of(place: int, turn: int = 0) -> torch.Tensor:
    """Values of one member; no order of summation is exact."""
    return torch.randn(NUM_ELEMENTS, generator=torch.Generator().manual_seed(10 * turn + place))


def reduce_slice(things: Things, place: int, begin: int, end: int) -> tuple[bool, torch.Tensor]:
    flat: torch.Tensor = things["flat"]
    group: ReplicationGroup = things["group"]
    flat.copy_(values_of(place))
    group.all_reduce(flat[begin:end])
    group.end_reading()
    rest = torch.cat([flat[:begin], flat[end:]])
    gold = torch.cat([values_of(place)[:begin], values_of(place)[end:]])
    return torch.equal(rest, gold), flat[begin:end].clone()


SLICES = [(0, NUM_ELEMENTS), (1, 2), (5, 8), (7, 7), (1000, 1003), (24, 16_824)]
WITH_NODES = pytest.mark.parametrize("members", [ONE_NODE, TWO_NODES, "abab"], indirect=True)


@WITH_NODES
@pytest.mark.parametrize(("begin", "end"), SLICES)
def test_a_slice_is_summed_up_to_the_same_bits_everywhere_and_nothing_beside_it(
    members: list[MemberProcess], begin: int, end: int
) -> None:
    assert ask_all(members, shares) == [True] * MOST
    results = ask_all(members, reduce_slice, begin, end)
    gold = sum(values_of(place).double()[begin:end] for place in range(MOST))
    for is_untouched, ours in results:
        assert is_untouched
        assert torch.equal(ours, results[0][1])
        torch.testing.assert_close(ours.double(), gold, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("nodes", ["abcd", "aaab"])
def test_members_that_no_node_or_not_every_node_has_equally_many_of_share_nothing(
    processes: list[MemberProcess], nodes: str
) -> None:
    connect_all(processes, nodes)
    assert ask_all(processes, shares) == [False] * MOST
    check_sum(processes)


@pytest.mark.parametrize("nodes", [ONE_NODE, TWO_NODES])
def test_all_send_messages_if_one_has_no_memory_to_share(
    processes: list[MemberProcess], nodes: str
) -> None:
    connect_all(processes, nodes, without=[2])
    assert ask_all(processes, shares) == [False] * MOST
    check_sum(processes)


@pytest.mark.parametrize("nodes", [ONE_NODE, TWO_NODES])
def test_all_send_messages_if_two_of_one_node_cannot_reach_each_other(
    processes: list[MemberProcess], nodes: str
) -> None:
    processes[1].call(lose_sockets)
    ask_all(processes, meet_within, 0.5)  # who waits for a neighbour waits all of this time
    try:
        connect_all(processes, nodes)
    finally:
        processes[1].call(find_sockets)
        ask_all(processes, meet_within, shared._MEET_S)
    assert ask_all(processes, shares) == [False] * MOST
    check_sum(processes)


def meet_within(_: Things, place: int, seconds: float) -> None:
    shared._MEET_S = seconds


def lose_sockets(things: Things) -> None:
    """Name sockets as another container's would be: nobody here knows them."""
    things["address"] = shared._address
    shared._address = lambda name: f"\0elsewhere-{name}"


def find_sockets(things: Things) -> None:
    shared._address = things.pop("address")


def check_sum(members: list[MemberProcess]) -> None:
    results = ask_all(members, reduce_slice, 24, 16_824)
    gold = sum(values_of(place).double()[24:16_824] for place in range(MOST))
    for _, ours in results:
        torch.testing.assert_close(ours.double(), gold, rtol=1e-6, atol=1e-6)


def step_after_step(things: Things, place: int, late: int, turns: int) -> list[torch.Tensor]:
    """Sum up, and write the next values at once, as a trainer does; one reads later than all."""
    flat: torch.Tensor = things["flat"]
    group: ReplicationGroup = things["group"]
    halves = flat[: NUM_ELEMENTS // 2], flat[NUM_ELEMENTS // 2 :]
    sums = []
    for turn in range(turns):
        flat.copy_(values_of(place, turn))
        for half in halves:
            for stage in range(NUM_STAGES):
                if place == late:
                    time.sleep(0.01)  # lets the others run ahead as far as they can
                group.run_stage(stage, half)
        group.end_reading()
        sums.append(flat.clone())
        flat.fill_(float("nan"))
    return sums


@WITH_NODES
@pytest.mark.parametrize("late", [0, 3])
def test_nobody_writes_what_another_still_reads(members: list[MemberProcess], late: int) -> None:
    turns = 5
    results = ask_all(members, step_after_step, late, turns)
    for turn in range(turns):
        gold = sum(values_of(place, turn).double() for place in range(MOST))
        for ours in results:
            assert torch.equal(ours[turn], results[0][turn])
            torch.testing.assert_close(ours[turn].double(), gold, rtol=1e-6, atol=1e-6)


def reduce_until_it_breaks(things: Things, place: int) -> float:
    things.say("running")
    error = ""
    while not error:
        try:
            things["group"].all_reduce(things["flat"].zero_())
            things["group"].end_reading()
        except ReplicationError as broken:
            error = str(broken)
    assert "generation 1" in error
    return time.monotonic()


@pytest.mark.parametrize("nodes", [ONE_NODE, TWO_NODES])
def test_all_know_at_once_of_one_that_dies(nodes: str) -> None:
    with member_processes(MOST) as members:
        connect_all(members, nodes)
        for place, member in enumerate(members):
            member.begin(reduce_until_it_breaks, place)
        assert [member.answer() for member in members] == ["running"] * MOST
        members[1].kill()
        killed = time.monotonic()
        for member in (members[0], *members[2:]):
            assert member.answer() - killed < 2.0


def reduce_with_a_limit(things: Things, place: int, limit_s: float) -> float:
    things["group"].limit_collectives(limit_s)
    things.say("limited")
    begin = time.monotonic()
    with pytest.raises(ReplicationError, match="did not come"):
        things["group"].all_reduce(things["flat"].zero_())
    return time.monotonic() - begin


def test_one_that_is_silent_is_known_at_the_time_limit() -> None:
    limit_s = 0.5
    with member_processes(2) as members:
        connect_all(members, "aa")
        os.kill(members[1].pid, signal.SIGSTOP)
        try:
            members[0].begin(reduce_with_a_limit, 0, limit_s)
            assert members[0].answer() == "limited"
            assert limit_s * 0.9 < members[0].answer() < TIMEOUT_S / 2
        finally:
            os.kill(members[1].pid, signal.SIGCONT)


def held(things: Things, place: int) -> tuple[int, int]:
    """Return how many files and how many mappings of shared memory this process has."""
    files = [file.readlink().name for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    maps = Path("/proc/self/maps").read_text().count("/memfd:mics")
    return sum("memfd:mics" in file for file in files), maps


def test_generations_leave_no_memory_and_no_files_behind(processes: list[MemberProcess]) -> None:
    for _ in range(3):
        connect_all(processes, ONE_NODE)
        check_sum(processes)
    ask_all(processes, leave)
    assert ask_all(processes, held) == [(0, 0)] * MOST


def test_memory_cannot_be_made_shorter_nor_be_written_by_others() -> None:
    memory = SharedMemory(5000)
    assert memory.bytes.tolist() == [0] * 5000
    with pytest.raises(PermissionError):
        os.ftruncate(memory._file, 100)
    here, there = socket.socketpair()
    with here, there:
        memory.send(here)
        theirs = shared._map(there)
    memory.bytes[17] = 3
    assert theirs.tolist() == memory.bytes.tolist()
    line = next(
        line
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.startswith(f"{theirs.data_ptr():x}-")
    )
    assert line.split()[1] == "r--s"


def test_only_tensors_inside_the_memory_have_a_place_in_it() -> None:
    memory = SharedMemory(400)
    numbers = memory.bytes.view(torch.float32)
    assert memory.offset_of(numbers) == 0
    assert memory.offset_of(numbers[7:]) == 28
    assert memory.offset_of(torch.zeros(1)) is None
    assert memory.offset_of(SharedMemory(400).bytes) is None


def meet(offer: Offer, given_up: Event | None = None) -> Neighbours | None:
    """Wait for one other."""
    return offer.meet(
        [offer.name, ""],
        0,
        num_doors=1,
        timeout_s=TIMEOUT_S,
        all_agree=lambda is_ready: is_ready,
        given_up=given_up,
    )


@pytest.mark.parametrize(("place", "door"), [(0, 0), (2, 0), (1, 1)])
def test_who_says_that_he_is_nobody_is_no_neighbour(place: int, door: int) -> None:
    offer = Offer(SharedMemory(100))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(shared._address(offer.name))
        stranger.sendall(shared._HELLO.pack(place, door))
        assert meet(offer) is None
    offer.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_turned_away() -> None:
    offer = Offer(SharedMemory(100))
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.setuid(65534)
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(shared._address(offer.name))
            stranger.sendall(shared._HELLO.pack(1, 0))
            os.write(there, b"connected")
            with contextlib.suppress(ConnectionResetError):
                os._exit(len(stranger.recv(1)))
            os._exit(0)
        os._exit(2)
    assert os.read(here, 9) == b"connected"
    gives_up = Event()
    gives_up.set()
    assert meet(offer, gives_up) is None
    offer.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(here)
    os.close(there)
