"""Memory that the workers of one node share, and doors at which they wait for each other.

[Note: memory shared by a node]
Between processes of one machine every message is copied twice more than it need be, into the kernel
and out of it, and gloo adds buffers of its own. Here each worker keeps what the others are to have
in memory that they map: each reads it where it lies, once. Nothing is sent but a byte through a
socket, by which all say that they have come to the same point, a *door*: behind it everybody may
read what everybody had written before.

- The memory is a sealed `memfd`: no file, no limit of /dev/shm, gone with its last mapping, and
  never shorter than it was mapped. Others map it for reading alone. Its descriptor goes through the
  socket, so a worker needs no right over another's process.
- Sockets are Unix sockets in Linux's abstract namespace: they leave no file behind and never leave
  the host. Who connects must be of the same user, and know a name of 128 random bits.
- Sockets end with their process: a neighbour that dies is known at once. One that is silent is
  known at the time limit.

Where memory or sockets cannot be had (another system than Linux, workers of a node in containers
that share no network) collectives send messages, as `mics_core.comm.direct` does. Pages that a
worker has read of others count in its resident size, though they are there once.
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import Event
from time import monotonic

import torch

try:
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, fcntl
except ImportError:  # another system than Linux
    fcntl = None  # type: ignore[assignment]

__all__ = ["Neighbours", "Offer", "SharedMemory"]

_LOOK_S = 0.25
_MEET_S = 5.0
"""All have come already, and take milliseconds; who takes longer shares no memory."""
_HERE = b"\x01"
_HELLO = struct.Struct("!HH")
_SIZE = struct.Struct("!Q")
_CREDENTIALS = struct.Struct("3i")


class SharedMemory:
    """Memory of this process that others of its node can map.

    Args:
        num_bytes: Its size; more than none.

    Raises:
        OSError: The system has none.
    """

    def __init__(self, num_bytes: int):
        if fcntl is None:
            raise OSError("memory is shared on Linux alone")
        self._file = os.memfd_create("mics", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._file, num_bytes)
            fcntl(self._file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
            mapped = mmap.mmap(self._file, num_bytes)
        except BaseException:
            os.close(self._file)
            raise
        self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        """All of it, zero at first; (num_bytes), uint8."""

    def __del__(self) -> None:
        # The mapping lives as long as a tensor of it; the descriptor is for new neighbours alone.
        if hasattr(self, "bytes"):
            os.close(self._file)

    def offset_of(self, values: torch.Tensor) -> int | None:
        """Return where a contiguous tensor begins in this memory; None if it is not in it."""
        offset = values.data_ptr() - self.bytes.data_ptr()
        is_inside = offset >= 0 and offset + values.nbytes <= self.bytes.nbytes
        return offset if is_inside else None

    def send(self, to: socket.socket) -> None:
        """Give the process at the other end of a Unix socket the memory to map."""
        socket.send_fds(to, [_SIZE.pack(self.bytes.nbytes)], [self._file])


class Offer:
    """This worker's offer to share memory with others of its node: a name at which it listens.

    Args:
        memory: What the others may read.

    Raises:
        OSError: The system has no such sockets.
    """

    def __init__(self, memory: SharedMemory):
        self.memory = memory
        self.name = secrets.token_hex(16)
        """Which the others must be told."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(_address(self.name))
            self._listener.listen()
        except BaseException:
            self._listener.close()
            raise

    @classmethod
    def of(cls, memory: SharedMemory | None) -> Offer | None:
        """Return an offer of memory, if there is any and the system has such sockets."""
        try:
            return cls(memory) if memory is not None else None
        except OSError:
            return None

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def meet(
        self,
        names: Sequence[str],
        place: int,
        *,
        num_doors: int,
        timeout_s: float,
        all_agree: Callable[[bool], bool],
        given_up: Event | None = None,
    ) -> Neighbours | None:
        """Connect to all others and map their memory; all of them must call it at the same time.

        Args:
            names: Of everybody's offer, by place; the same on all.
            place: This worker's.
            num_doors: Doors to be built.
            timeout_s: Time limit of doors.
            all_agree: Tells the others, in another way, whether this worker has succeeded, and
                returns whether all have; the same on all.
            given_up: Set when nobody is waited for any more.

        Returns:
            None, on all of them, if one cannot reach another, as where the workers of a node are in
            containers that share no network, or does not answer soon.
        """
        neighbours = None
        with suppress(OSError):
            neighbours = self._meet(names, place, num_doors, given_up or Event())
        agreed = all_agree(neighbours is not None)
        if neighbours is None:
            return None
        if not agreed:
            neighbours.close()
            return None
        neighbours.limit(timeout_s)
        return neighbours

    def _meet(
        self, names: Sequence[str], place: int, num_doors: int, given_up: Event
    ) -> Neighbours:
        deadline = monotonic() + _MEET_S
        with ExitStack() as undo:
            doors: list[dict[int, socket.socket]] = [{} for _ in range(num_doors)]
            for other in range(place):
                for number, door in enumerate(doors):
                    door[other] = undo.enter_context(socket.socket(socket.AF_UNIX))
                    door[other].settimeout(_MEET_S)
                    door[other].connect(_address(names[other]))
                    door[other].sendall(_HELLO.pack(place, number))
            while any(len(door) < len(names) - 1 for door in doors):
                connection = undo.enter_context(self._accept(deadline, given_up))
                connection.settimeout(_MEET_S)
                other, number = _HELLO.unpack(_receive(connection, _HELLO.size))
                if not (place < other < len(names) and number < num_doors):
                    raise ConnectionError("a stranger came")
                doors[number][other] = connection
            for connection in doors[0].values():
                self.memory.send(connection)
            rows = [
                self.memory.bytes if other == place else _map(doors[0][other])
                for other in range(len(names))
            ]
            undo.pop_all()
        return Neighbours(self.memory, place, rows, [list(door.values()) for door in doors])

    def _accept(self, deadline: float, given_up: Event) -> socket.socket:
        """Return the next connection of a process of this user."""
        self._listener.settimeout(_LOOK_S)
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if given_up.is_set() or monotonic() > deadline:
                    raise OSError("a worker of this node did not come") from None
                continue
            if _user_of(connection) == os.getuid():
                return connection
            connection.close()


class Neighbours:
    """The workers of this node: their memory, and the doors between them.

    A door is used by one thread at a time. All must go through the same doors in the same order,
    each door by itself.

    Args:
        memory: This worker's own.
        place: This worker's place among them.
        rows: Everybody's memory by place, this worker's own included; uint8, only to be read.
        doors: The connections to all others, for each door.
    """

    def __init__(
        self,
        memory: SharedMemory,
        place: int,
        rows: Sequence[torch.Tensor],
        doors: Sequence[Sequence[socket.socket]],
    ):
        self.memory = memory
        self.place = place
        self._rows = rows
        self._doors = doors

    @property
    def others(self) -> list[int]:
        """The places of all but this worker."""
        return [other for other in range(len(self._rows)) if other != self.place]

    def same_of(self, other: int, values: torch.Tensor) -> torch.Tensor:
        """Return what another worker has where this one has `values`, a tensor of its memory."""
        offset = self.memory.offset_of(values)
        assert offset is not None, "only memory that is shared can be read"
        row = self._rows[other][offset : offset + values.nbytes]
        return row.view(values.dtype).view(values.shape)

    def pass_door(self, number: int) -> None:
        """Wait until all have come to a door.

        Raises:
            RuntimeError: One is gone, or does not come within the time limit.
        """
        connections = self._doors[number]
        try:
            for connection in connections:
                connection.sendall(_HERE)
            for connection in connections:
                _receive(connection, len(_HERE))
        except OSError as error:
            raise RuntimeError(f"a worker of this node did not come: {error}") from None

    def limit(self, timeout_s: float) -> None:
        """Set the time limit of doors from now on."""
        for connections in self._doors:
            for connection in connections:
                connection.settimeout(timeout_s)

    def close(self) -> None:
        """Close the doors; whoever waits at one, here or elsewhere, fails at once."""
        for connections in self._doors:
            for connection in connections:
                _shut(connection)


def _address(name: str) -> str:
    return f"\0mics-{name}"


def _map(connection: socket.socket) -> torch.Tensor:
    """Receive memory and map it for reading."""
    message, files, _, _ = socket.recv_fds(connection, _SIZE.size, 1)
    try:
        if len(message) != _SIZE.size or len(files) != 1:
            raise ConnectionError("a worker of this node is gone")
        (num_bytes,) = _SIZE.unpack(message)
        mapped = mmap.mmap(files[0], num_bytes, access=mmap.ACCESS_READ)
    finally:
        for file in files:
            os.close(file)
    with warnings.catch_warnings():
        # torch has no tensors that cannot be written; nothing here writes to it.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _receive(connection: socket.socket, num_bytes: int) -> bytes:
    message = b""
    while len(message) < num_bytes:
        part = connection.recv(num_bytes - len(message))
        if not part:
            raise ConnectionError("it is gone")
        message += part
    return message


def _user_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # the other end may have gone
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
