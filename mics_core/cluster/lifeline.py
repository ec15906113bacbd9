"""Lifelines: connections that workers hold to the supervisor for as long as they live.

The kernel closes a connection with the process that holds it. So the supervisor learns of a death
within milliseconds, whoever or whatever killed the process, and long before any heartbeat of Ray's
is missed. Nothing is sent but who it is, and a last word from a worker that ends in order.

A machine that loses its power or its network closes nothing. So the kernels at both ends ask each
other whether they are there, and close the connection themselves when nobody answers. They answer
for a process that hangs, too: that one is found by its silence.

A worker learns in the same way that the supervisor is gone, and connects to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from mics_core.cluster.reaching import SupervisorGoneError
from mics_core.errors import ClusterError

__all__ = ["Lifeline", "LifelineAddress", "Lifelines"]

logger = logging.getLogger(__name__)

_LAST_WORD = b"done\n"
_CONNECT_S = 10.0
_BEGIN_WITHIN_S = 60.0
_AGAIN_S = 0.5
_BACK_WITHIN_S = 15.0
"""More than connecting takes, to a machine that can be reached again."""

_IDLE_S = 10
_PROBE_S = 5
_PROBES = 4


@dataclass(frozen=True, slots=True)
class LifelineAddress:
    """Where a supervisor listens.

    Args:
        host: Address of its node.
        port: Port there.
        token: What a worker shows, so that nobody else is taken for one.
    """

    host: str
    port: int
    token: str


class Lifelines:
    """The supervisor's ends.

    Args:
        died: Told the group and the rank of a worker whose connection closed without a last word,
            or broke and was not followed by another.
    """

    def __init__(self, died: Callable[[int, int], None]):
        self._died = died
        self._newest: dict[tuple[int, int], asyncio.StreamReader] = {}
        self._came = asyncio.Condition()
        self._token = secrets.token_hex(16)
        self._server: asyncio.Server | None = None

    async def listen(self, host: str) -> LifelineAddress:
        """Listen at a free port of all interfaces.

        Args:
            host: Address by which workers reach this node.
        """
        everywhere = "::" if ":" in host else "0.0.0.0"
        self._server = await asyncio.start_server(self._hold, everywhere, port=0)
        port = self._server.sockets[0].getsockname()[1]
        return LifelineAddress(host, port, self._token)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _notice_absence(writer.get_extra_info("socket"))
        try:
            token, group_id, rank = (await reader.readline()).decode().split()
            if not secrets.compare_digest(token, self._token):
                return
            worker = int(group_id), int(rank)
        except (ValueError, OSError):
            return  # somebody who knows nothing of us
        else:
            async with self._came:
                self._newest[worker] = reader
                self._came.notify_all()
            if await self._is_gone(worker, reader):
                self._died(*worker)
        finally:
            writer.close()

    async def _is_gone(self, worker: tuple[int, int], reader: asyncio.StreamReader) -> bool:
        """Wait for a connection's end, and return whether the worker's process has died.

        Its kernel says so. If this one gave the connection up, the machines could not reach each
        other: the worker may live, and connects again when they can.
        """

        def came_again() -> bool:
            return self._newest[worker] is not reader

        try:
            return await reader.readline() != _LAST_WORD and not came_again()
        except OSError:
            with contextlib.suppress(TimeoutError):
                async with self._came:
                    await asyncio.wait_for(self._came.wait_for(came_again), _BACK_WITHIN_S)
            return not came_again()


class Lifeline:
    """A worker's end, held by a thread.

    Args:
        find: Returns where the supervisor listens; waits for one that is being started anew.
        group_id: The worker's partition group.
        rank: Its rank there.

    Raises:
        SupervisorGoneError: There is no supervisor any more.
        ClusterError: It has not said where it listens, after a minute of asking.
        OSError: Nobody listens there, after a minute of trying.
    """

    def __init__(self, find: Callable[[], LifelineAddress], group_id: int, rank: int):
        self._find = find
        self._worker = f"{group_id} {rank}"
        self._has_ended = threading.Event()
        self._socket = self._begin()
        threading.Thread(target=self._hold, name="mics-lifeline", daemon=True).start()

    def end(self) -> None:
        """Say that this worker ends in order."""
        self._has_ended.set()
        with contextlib.suppress(OSError):
            self._socket.sendall(_LAST_WORD)
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread

    def _begin(self) -> socket.socket:
        """Connect for the first time, while the supervisor may be busy or be started anew."""
        deadline = time.monotonic() + _BEGIN_WITHIN_S
        while True:
            try:
                return self._connect()
            except (OSError, ClusterError, RayError) as error:
                if _is_final(error) or time.monotonic() > deadline:
                    raise
                logger.warning("there is no lifeline yet: %s", error)
                self._has_ended.wait(_AGAIN_S)

    def _connect(self) -> socket.socket:
        address = self._find()
        connected = socket.create_connection((address.host, address.port), _CONNECT_S)
        _notice_absence(connected)
        connected.settimeout(None)
        connected.sendall(f"{address.token} {self._worker}\n".encode())
        return connected

    def _hold(self) -> None:
        while not self._has_ended.is_set():
            with contextlib.suppress(OSError):
                self._socket.recv(1)  # nothing is ever sent: it returns when the other end closes
            self._socket.close()
            if not self._connect_again():
                return

    def _connect_again(self) -> bool:
        """Connect to the next supervisor, whenever it comes; return whether one can come."""
        while not self._has_ended.is_set():
            try:
                self._socket = self._connect()
                if self._has_ended.is_set():
                    self.end()  # which told it to the connection that was gone
                return True
            except (OSError, ClusterError, RayError) as error:
                if _is_final(error):
                    logger.warning("the lifeline is not held any more: %s", error)
                    return False
                logger.warning("the lifeline is not held for a while: %s", error)
                self._has_ended.wait(_AGAIN_S)
        return False


def _is_final(error: Exception) -> bool:
    """Whether there will be no other supervisor, or not for this process: it is shut down."""
    if isinstance(error, RayError):
        return not ray.is_initialized()
    return isinstance(error, SupervisorGoneError)


def _notice_absence(connection: socket.socket) -> None:
    """Let the kernel close a connection when the other machine has not answered for 30 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    # Nothing is asked while something sent is not confirmed: that has a limit of its own.
    limit_ms = 1000 * (_IDLE_S + _PROBES * _PROBE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
