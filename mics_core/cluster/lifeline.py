"""Lifelines: connections that workers hold to the supervisor for as long as they live.

The kernel closes a connection with the process that holds it. So the supervisor learns of a death
within milliseconds, whoever or whatever killed the process, and long before any heartbeat of Ray's
is missed. Nothing is sent but who it is, and a last word from a worker that ends in order. A node
that is cut off closes nothing; it is found by its silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Lifeline", "LifelineAddress", "Lifelines"]

_LAST_WORD = b"done\n"
_CONNECT_S = 10.0


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
    """A worker's end.

    Args:
        address: Where the supervisor listens.
        group_id: The worker's partition group.
        rank: Its rank there.

    Raises:
        OSError: Nobody listens there.
    """

    def __init__(self, address: LifelineAddress, group_id: int, rank: int):
        self._socket = socket.create_connection((address.host, address.port), _CONNECT_S)
        self._socket.sendall(f"{address.token} {group_id} {rank}\n".encode())

    def end(self) -> None:
        """Say that this worker ends in order."""
        with contextlib.suppress(OSError):
            self._socket.sendall(_LAST_WORD)
        self._socket.close()
