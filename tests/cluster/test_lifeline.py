"""A worker's death is known as soon as the kernel closes its connection."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event

import pytest

from mics_core.cluster import lifeline as lifelines
from mics_core.cluster.lifeline import Lifeline, LifelineAddress, Lifelines
from mics_core.cluster.reaching import SupervisorGoneError
from mics_core.errors import ClusterError
from tests.cluster.running import eventually

WITHIN_S = 30.0


class Supervisor:
    """Listens, and keeps who died."""

    def __init__(self) -> None:
        self.deaths: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self.lifelines = Lifelines(lambda *worker: self.deaths.put_nowait(worker))

    async def next_death(self) -> tuple[int, int]:
        return await asyncio.wait_for(self.deaths.get(), WITHIN_S)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Supervisor, LifelineAddress]]:
    supervisor = Supervisor()
    yield supervisor, await supervisor.lifelines.listen("127.0.0.1")
    supervisor.lifelines.close()


def hold(address: LifelineAddress, group_id: int, rank: int, holds: Event) -> None:
    lifeline = Lifeline(lambda: address, group_id, rank)
    holds.set()
    signal.pause()
    lifeline.end()


def break_off(lifeline: Lifeline) -> None:
    """End a lifeline without a last word, as the kernel does for a process that dies."""
    lifeline._has_ended.set()
    lifeline._socket.shutdown(socket.SHUT_RDWR)


def test_a_killed_process_is_told_by_group_and_rank() -> None:
    async def story() -> None:
        async with listening() as (supervisor, address):
            context = get_context("spawn")
            holds = context.Event()
            process = context.Process(target=hold, args=(address, 3, 1, holds))
            process.start()
            assert await asyncio.to_thread(holds.wait, WITHIN_S)
            assert supervisor.deaths.empty()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            assert await supervisor.next_death() == (3, 1)
            process.join()

    asyncio.run(story())


def test_one_that_ends_in_order_is_no_death() -> None:
    async def story() -> None:
        async with listening() as (supervisor, address):
            ends = await asyncio.to_thread(Lifeline, lambda: address, 0, 0)
            dies = await asyncio.to_thread(Lifeline, lambda: address, 0, 1)
            ends.end()
            break_off(dies)
            assert await supervisor.next_death() == (0, 1)
            assert supervisor.deaths.empty()

    asyncio.run(story())


@pytest.mark.parametrize(
    "greeting",
    [
        lambda _: b"",
        lambda _: b"GET / HTTP/1.1\r\n\r\n",
        lambda _: b"\xff\xfe\n",
        lambda address: f"{address.token} one two\n".encode(),
        lambda address: f"{address.token[::-1]} 0 0\n".encode(),
    ],
)
def test_strangers_are_no_workers(greeting: Callable[[LifelineAddress], bytes]) -> None:
    async def story() -> None:
        async with listening() as (supervisor, address):
            stranger = socket.create_connection((address.host, address.port))
            stranger.sendall(greeting(address))
            stranger.close()
            dies = await asyncio.to_thread(Lifeline, lambda: address, 7, 0)
            break_off(dies)
            assert await supervisor.next_death() == (7, 0)
            assert supervisor.deaths.empty()

    asyncio.run(story())


def test_where_nobody_listens_a_worker_cannot_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifelines, "_BEGIN_WITHIN_S", 0.0)

    async def story() -> LifelineAddress:
        async with listening() as (_, address):
            return address

    address = asyncio.run(story())
    with pytest.raises(OSError, match="refused"):
        Lifeline(lambda: address, 0, 0)


def test_a_worker_connects_to_the_supervisor_that_follows_one_that_is_gone() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def story() -> None:
        first = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = first.sockets[0].getsockname()[1]
        async with listening() as (supervisor, second):
            addresses = iter([LifelineAddress("127.0.0.1", port, "first"), second])
            dies = await asyncio.to_thread(Lifeline, lambda: next(addresses), 5, 1)
            await asyncio.to_thread(wait_for_address, dies, (second.host, second.port))
            break_off(dies)
            assert await supervisor.next_death() == (5, 1)
        first.close()

    asyncio.run(story())


def wait_for_address(lifeline: Lifeline, address: tuple[str, int]) -> None:
    def is_there() -> bool:
        try:
            return bool(lifeline._socket.getpeername() == address)
        except OSError:
            return False  # it has hung up, and not connected again yet

    eventually(is_there, f"the connection to {address}", WITHIN_S)


def answers(*script: LifelineAddress | Exception) -> Callable[[], LifelineAddress]:
    """Return what a worker asks, as answered one after the other; the last goes on for ever."""
    left = list(script)

    def find() -> LifelineAddress:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return find


BUSY = ClusterError("The supervisor did not answer.")


def test_a_worker_asks_again_where_a_supervisor_that_does_not_answer_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifelines, "_AGAIN_S", 0.01)

    async def story() -> None:
        async with listening() as (supervisor, address):
            nowhere = LifelineAddress("127.0.0.1", 1, "nowhere")
            find = answers(BUSY, nowhere, BUSY, address)
            dies = await asyncio.to_thread(Lifeline, find, 5, 1)
            break_off(dies)
            assert await supervisor.next_death() == (5, 1)

    asyncio.run(story())


def test_a_worker_whose_supervisor_is_gone_for_good_cannot_begin() -> None:
    with pytest.raises(SupervisorGoneError):
        Lifeline(answers(SupervisorGoneError("It has ended.")), 0, 0)


def test_a_worker_waits_for_the_supervisor_that_follows_however_long_it_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifelines, "_AGAIN_S", 0.01)
    monkeypatch.setattr(lifelines, "_BEGIN_WITHIN_S", 0.0)

    async def story() -> None:
        async with listening() as (_, first), listening() as (supervisor, second):
            find = answers(first, BUSY, BUSY, BUSY, second)
            dies = await asyncio.to_thread(Lifeline, find, 5, 1)
            dies._socket.shutdown(socket.SHUT_RDWR)  # the first is gone
            await asyncio.to_thread(wait_for_address, dies, (second.host, second.port))
            break_off(dies)
            assert await supervisor.next_death() == (5, 1)

    asyncio.run(story())


def test_both_ends_notice_within_30_s_that_the_other_machine_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose power fails says nothing; a lost network cannot be tested without being root."""
    notice, ends = lifelines._notice_absence, []

    def recorded(connection: socket.socket) -> None:
        notice(connection)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, probe_s, probes = (
            connection.getsockopt(socket.IPPROTO_TCP, option) for option in options
        )
        user_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        asks = bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        ends.append((asks, idle_s + probes * probe_s, user_ms))

    monkeypatch.setattr(lifelines, "_notice_absence", recorded)

    async def story() -> None:
        async with listening() as (supervisor, address):
            dies = await asyncio.to_thread(Lifeline, lambda: address, 5, 1)
            break_off(dies)
            await supervisor.next_death()

    asyncio.run(story())
    assert ends == [(True, 30, 30_000)] * 2


def test_a_connection_that_breaks_is_no_death_if_its_worker_comes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(lifelines, "_BACK_WITHIN_S", 0.3)
        async with listening() as (supervisor, address):
            held = supervisor.lifelines._newest
            ends = [await hold_by_hand(supervisor, address, 0, rank) for rank in (0, 1)]
            # As the kernel does when the other machine has not answered for long.
            held[0, 0].set_exception(TimeoutError())
            held[0, 1].set_exception(TimeoutError())
            ends.append(await hold_by_hand(supervisor, address, 0, 0))
            assert await supervisor.next_death() == (0, 1)
            ends[0].close()  # late, and not the newest
            ends[2].close()
            assert await supervisor.next_death() == (0, 0)
            assert supervisor.deaths.empty()
            ends[1].close()

    asyncio.run(story())


async def hold_by_hand(
    supervisor: Supervisor, address: LifelineAddress, group_id: int, rank: int
) -> asyncio.StreamWriter:
    """Connect as a worker does, but for connecting again; return once it is held."""
    newest = supervisor.lifelines._newest
    before = newest.get((group_id, rank))
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(f"{address.token} {group_id} {rank}\n".encode())
    is_held = _until(lambda: newest.get((group_id, rank)) is not before)
    await asyncio.wait_for(is_held, WITHIN_S)
    return writer


async def _until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.01)


def test_a_last_word_is_said_to_a_supervisor_that_comes_while_the_worker_ends() -> None:
    async def story() -> None:
        async with listening() as (supervisor, address), listening() as (_, gone_address):
            addresses = [gone_address, address]
            asked, go_on = threading.Event(), threading.Event()

            def find() -> LifelineAddress:
                if len(addresses) == 1:
                    asked.set()
                    assert go_on.wait(WITHIN_S)
                return addresses.pop(0)

            line = await asyncio.to_thread(Lifeline, find, 0, 0)
            line._socket.shutdown(socket.SHUT_RDWR)
            assert await asyncio.to_thread(asked.wait, WITHIN_S)
            line.end()
            go_on.set()
            dies = await asyncio.to_thread(Lifeline, lambda: address, 0, 1)
            await asyncio.wait_for(_until(lambda: len(supervisor.lifelines._newest) == 2), WITHIN_S)
            break_off(dies)
            assert await supervisor.next_death() == (0, 1)
            assert supervisor.deaths.empty()

    asyncio.run(story())
