"""Lifelines: connections that workers hold to the supervisor for as long as they live.

The kernel closes a connection with the process that holds it. So the supervisor learns of a death
within milliseconds, whoever or whatever killed the process, and long before any heartbeat of Ray's
is missed. Nothing is sent but who it is, and a last word from a worker that ends in order. A node
that is cut off closes nothing; it is found by its silence.

A worker learns in the same way that the supervisor is gone, and connects to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from mics_core.errors import MicsError

__all__ = ["Lifeline", "LifelineAddress", "Lifelines"]

logger = logging.getLogger(__name__)

_LAST_WORD = b"done\n"
_CONNECT_S = 10.0
_AGAIN_S = 0.5


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
        died: Told the group and the rank of a worker whose connection closed without a last word.
    """

    def __init__(self, died: Callable[[int, int], None]):
        self._died = died
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
        try:
            token, group_id, rank = (await reader.readline()).decode().split()
            if not secrets.compare_digest(token, self._token):
                return
            worker = int(group_id), int(rank)
        except ValueError:
            return  # somebody who knows nothing of us
        else:
            last_word = b""
            with contextlib.suppress(OSError):
                last_word = await reader.readline()
            if last_word != _LAST_WORD:
                self._died(*worker)
        finally:
            writer.close()


class Lifeline:
    """A worker's end, held by a thread.

    Args:
        find: Returns where the supervisor listens; waits for one that is being started anew.
        group_id: The worker's partition group.
        rank: Its rank there.

    Raises:
        OSError: Nobody listens there.
    """

    def __init__(self, find: Callable[[], LifelineAddress], group_id: int, rank: int):
        self._find = find
        self._worker = f"{group_id} {rank}"
        self._has_ended = threading.Event()
        self._socket = self._connect()
        threading.Thread(target=self._hold, name="mics-lifeline", daemon=True).start()

    def end(self) -> None:
        """Say that this worker ends in order."""
        self._has_ended.set()
        with contextlib.suppress(OSError):
            self._socket.sendall(_LAST_WORD)
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread

    def _connect(self) -> socket.socket:
        address = self._find()
        connected = socket.create_connection((address.host, address.port), _CONNECT_S)
        connected.settimeout(None)
        connected.sendall(f"{address.token} {self._worker}\n".encode())
        return connected

    def _hold(self) -> None:
        while not self._has_ended.is_set():
            with contextlib.suppress(OSError):
                self._socket.recv(1)  # nothing is ever sent: it returns when the other end closes
            self._socket.close()
            while not self._has_ended.is_set():
                try:
                    self._socket = self._connect()
                    break
                except OSError:
                    self._has_ended.wait(_AGAIN_S)
                except MicsError as error:
                    logger.warning("the lifeline is not held any more: %s", error)
                    return
