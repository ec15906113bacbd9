"""The key-value store that the members of a generation meet at.

[Note: why not torch's store]
`TCPStore` asks for the name of every address that it connects to or accepts a connection from, to
put it into a log line. Its server does that on the one thread that serves everybody. A name server
that takes ten milliseconds makes a generation of a hundred workers wait for seconds, and one whose
answer is lost makes it wait for five. Nobody may wait for names while survivors regroup, so this
store does not ask. It is a `torch.distributed.Store`, so gloo's process groups connect over it.

Keys are written once. So a client may keep what it has seen: it takes all values beside the one
that it asks for, and gloo's questions for one peer after the other cost a few requests instead of
one each. Counters (`add`) change, and are asked for each time.

Whoever reaches the port can send anything. What is no request in its turn ends that connection, and
what it asks for is looked at before it is kept, since others are told of it.
"""

from __future__ import annotations

import selectors
import socket
import struct
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Lock, Thread

import torch.distributed as dist
from torch._C._distributed_c10d import Store

__all__ = ["KeyTakenError", "MeetingStore", "StoreHost", "host_store"]

_PATIENCE = timedelta(seconds=300)
_CONNECT_S = 2.0
_BACKLOG = 1024
_LARGEST = 1 << 24
"""Longest request; less than what the first bytes of other protocols would be as a length."""
_LARGEST_COUNT = 1 << 63
_LENGTH = struct.Struct("!I")

_SET, _WAIT, _ADD, _CHECK, _DELETE, _COUNT, _DONE, _REFUSED = (bytes([code]) for code in range(8))


class KeyTakenError(dist.DistStoreError):
    """A key has another value already."""


def host_store(host: str) -> StoreHost:
    """Host a store at a free port, for as long as the returned object lives."""
    return StoreHost(host)


class StoreHost:
    """A store's server, on a thread of its own that ends with this object, or with `close`.

    Args:
        host: The address to listen at.
    """

    def __init__(self, host: str):
        self._listener = socket.create_server((host, 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._server = _Server(self._listener)
        Thread(target=self._server.run, name="store", daemon=True).start()
        weakref.finalize(self, self._server.ring).atexit = False

    def close(self) -> None:
        """Stop listening and drop all connections."""
        self._server.ring()
        self._server.ended.wait()


@dataclass(eq=False, slots=True)
class _Client:
    """What the server knows of one connection."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)
    waits_for: list[bytes] = field(default_factory=list)
    seen: Counter[bytes] = field(default_factory=Counter)
    """How many keys of each folder it has been told."""


class _Server:
    """One thread's work: every request is answered at once, but for those that wait for keys."""

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._values: dict[bytes, bytes] = {}
        self._folders: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._counters: dict[bytes, int] = {}
        self._waiting: set[_Client] = set()
        self._bell, self._rung = socket.socketpair()
        self.ended = Event()

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._rung, selectors.EVENT_READ)
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._rung:
                    self._end()
                    return
                else:
                    self._serve(key.data, events)

    def ring(self) -> None:
        """Ask the thread to end."""
        with suppress(OSError):  # it has ended
            self._bell.send(b"!")

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._bell.close()
        self.ended.set()

    def _accept(self) -> None:
        with suppress(OSError):  # it went away between the two calls
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ, _Client(connection))

    def _serve(self, client: _Client, events: int) -> None:
        if client.socket.fileno() < 0:
            return  # it was dropped while others were served
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(client)
            if events & selectors.EVENT_READ:
                data = client.socket.recv(1 << 16)
                if not data:
                    raise ConnectionResetError
                client.received += data
                for parts in _taken(client.received):
                    self._answer(client, parts)
        except Exception:  # whatever it sends, only its own connection ends
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._waiting.discard(client)
        if client.socket.fileno() >= 0:
            self._selector.unregister(client.socket)
            client.socket.close()

    def _answer(self, client: _Client, parts: list[bytes]) -> None:
        if client in self._waiting or client.to_send:
            raise ValueError("a client asks before it has taken its answer")
        match parts:
            case [op, *pairs] if op == _SET and len(pairs) % 2 == 0:
                self._set(client, pairs[::2], pairs[1::2])
            case [op, *keys] if op == _WAIT:
                client.waits_for = keys
                self._waiting.add(client)
                self._let_go(client)
            case [op, key, amount] if op == _ADD:
                count = self._counters.get(key, 0) + int(amount)
                if abs(count) >= _LARGEST_COUNT:
                    raise ValueError("a counter is too large")
                self._counters[key] = count
                self._send(client, _DONE, b"%d" % self._counters[key])
                self._let_all_go()
            case [op, *keys] if op == _CHECK:
                self._send(client, _DONE, b"1" if all(map(self._has, keys)) else b"")
            case [op, key] if op == _DELETE:
                self._send(client, _DONE, b"1" if self._delete(key) else b"")
            case [op] if op == _COUNT:
                self._send(client, _DONE, b"%d" % (len(self._values) + len(self._counters)))
            case _:
                raise ValueError(parts)

    def _set(self, client: _Client, keys: list[bytes], values: list[bytes]) -> None:
        for key in keys:
            key.decode()  # as those do who are told of it
        for key, value in zip(keys, values, strict=True):
            if self._values.get(key, value) != value or key in self._counters:
                self._send(client, _REFUSED, b"%s has another value already" % key)
                return
            if key not in self._values:
                self._values[key] = value
                self._folders[_folder(key)].append(key)
        self._send(client, _DONE)
        self._let_all_go()

    def _delete(self, key: bytes) -> bool:
        if self._values.pop(key, None) is None:
            return self._counters.pop(key, None) is not None
        return True

    def _has(self, key: bytes) -> bool:
        return key in self._values or key in self._counters

    def _let_all_go(self) -> None:
        for client in list(self._waiting):
            self._let_go(client)

    def _let_go(self, client: _Client) -> None:
        """Answer a client that waits if all is there, with every value beside those it asks for."""
        if not all(map(self._has, client.waits_for)):
            return
        self._waiting.discard(client)
        counters = [key for key in client.waits_for if key in self._counters]
        told = {key: b"%d" % self._counters[key] for key in counters}
        for folder in {_folder(key) for key in client.waits_for}:
            beside = self._folders[folder]
            fresh = beside[client.seen[folder] :]
            client.seen[folder] = len(beside)
            told |= {key: self._values[key] for key in fresh if key in self._values}
        told |= {key: self._values[key] for key in client.waits_for if key in self._values}
        pairs = (part for pair in told.items() for part in pair)
        self._send(client, _DONE, b"%d" % len(set(counters)), *pairs)

    def _send(self, client: _Client, *parts: bytes) -> None:
        client.to_send += _packed(parts)
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            sent = client.socket.send(client.to_send)
            del client.to_send[:sent]
        except BlockingIOError:
            pass
        except OSError:  # of this client, whoever is being served
            self._drop(client)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.to_send else 0)
        self._selector.modify(client.socket, events, client)


class MeetingStore(Store):
    """A client of a store; any number of threads may use it at once.

    torch keeps only its own half of the object: whoever hands it to torch keeps it as well.

    Args:
        host: The address of the store's host.
        port: Its port.
        timeout: How long to connect, and to wait for keys unless told otherwise.
        answer: How long a host that lives may take to answer anything else.

    Raises:
        torch.distributed.DistNetworkError: Nobody listens there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        timeout: timedelta = _PATIENCE,
        answer: timedelta = _PATIENCE,
    ):
        super().__init__()
        self._address = (host, port)
        self._timeout = timeout
        self._answers_within = answer
        self._lock = Lock()
        self._idle: list[socket.socket] = []
        self._known: dict[str, bytes] = {}
        with self._connection(timeout):
            pass

    def set(self, key: str, value: str | bytes) -> None:
        """Set a key that has no other value yet."""
        self.multi_set([key], [value])

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Set several keys at once."""
        pairs = zip(keys, values, strict=True)
        parts = [_bytes(part) for pair in pairs for part in pair]
        self._ask(self._answer, _SET, *parts)

    def get(self, key: str) -> bytes:
        """Return a key's value once there is one."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return the values of several keys once all are there."""
        known = self._fetch(keys, self._timeout)
        return [known[key] for key in keys]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return once all keys are there.

        Raises:
            torch.distributed.DistStoreError: They were not within the time.
        """
        self._fetch(keys, self._timeout if timeout is None else timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all keys are there."""
        return bool(self._ask(self._answer, _CHECK, *map(_bytes, keys))[0])

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; return what it is then."""
        return int(self._ask(self._answer, _ADD, _bytes(key), b"%d" % amount)[0])

    def delete_key(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        self._known.pop(key, None)
        return bool(self._ask(self._answer, _DELETE, _bytes(key))[0])

    def num_keys(self) -> int:
        """Return how many keys there are."""
        return int(self._ask(self._answer, _COUNT)[0])

    def has_extended_api(self) -> bool:
        """Say that several keys can be set and read at once."""
        return True

    def set_timeout(self, timeout: timedelta) -> None:
        """Set how long to wait from now on."""
        self._timeout = timeout

    @property
    def timeout(self) -> timedelta:
        """How long to wait."""
        return self._timeout

    @property
    def _answer(self) -> timedelta:
        return min(self._timeout, self._answers_within)

    def clone(self) -> MeetingStore:
        """Return the same: every call that waits has a connection of its own."""
        return self

    def _fetch(self, keys: Sequence[str], timeout: timedelta) -> dict[str, bytes]:
        known = {key: value for key in keys if (value := self._known.get(key)) is not None}
        missing = [key for key in keys if key not in known]
        if missing:
            num_counters, *told = self._ask(timeout, _WAIT, *map(_bytes, missing))
            found = [
                (key.decode(), value) for key, value in zip(told[::2], told[1::2], strict=True)
            ]
            known |= found
            self._known |= found[int(num_counters) :]
        return known

    def _ask(self, timeout: timedelta, *parts: bytes) -> list[bytes]:
        """Send a request and return the reply's parts."""
        with self._connection(timeout) as connection:
            connection.sendall(_packed(parts))
            code, *reply = _received(connection)
        if code != _DONE:
            raise KeyTakenError(f"the store at {self._place} refuses: {reply[0].decode()}")
        return reply or [b""]

    @contextmanager
    def _connection(self, timeout: timedelta) -> Iterator[socket.socket]:
        """One for one request; after an error it may be in the middle of another, so it is gone."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = socket.create_connection(
                    self._address, min(_CONNECT_S, timeout.total_seconds())
                )
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(max(0.001, timeout.total_seconds()))
            yield connection
        except TimeoutError:
            if connection is not None:
                connection.close()
            raise dist.DistStoreError(
                f"the store at {self._place} timed out after {timeout.total_seconds():g} s"
            ) from None
        except OSError as error:
            if connection is not None:
                connection.close()
            raise dist.DistNetworkError(f"the store at {self._place} is gone: {error}") from None
        with self._lock:
            self._idle.append(connection)

    @property
    def _place(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"


def _folder(key: bytes) -> bytes:
    return key.rpartition(b"/")[0]


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _packed(parts: Sequence[bytes]) -> bytes:
    """Return a message: its length, and the length of each part before the part."""
    body = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
    return _LENGTH.pack(len(body)) + body


def _parts(body: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(body):
        if len(body) - at < _LENGTH.size:
            raise ValueError("a message ends within the length of a part")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if at + length > len(body):
            raise ValueError("a part is longer than its message")
        parts.append(body[at : at + length])
        at += length
    return parts


def _taken(received: bytearray) -> Iterator[list[bytes]]:
    """Take the whole messages out of what was received."""
    while len(received) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(received)
        if length > _LARGEST:
            raise ValueError("a message is too long")
        end = _LENGTH.size + length
        if len(received) < end:
            return
        body = bytes(received[_LENGTH.size : end])
        del received[:end]
        yield _parts(body)


def _received(connection: socket.socket) -> list[bytes]:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _parts(_exactly(connection, length))


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = connection.recv(min(size - len(received), 1 << 20))
        if not data:
            raise ConnectionResetError("it closed the connection")
        received += data
    return bytes(received)
