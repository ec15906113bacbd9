"""The store that members meet at, beside what torch says of one, and when its host goes away."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import PrefixStore

from mics_core.comm.store import MeetingStore, StoreHost, host_store

SHORT = timedelta(seconds=0.2)
SOON_S = 5.0


@pytest.fixture
def host() -> Iterator[StoreHost]:
    host = host_store("127.0.0.1")
    yield host
    host.close()


def client(host: StoreHost) -> MeetingStore:
    return MeetingStore("127.0.0.1", host.port, timedelta(seconds=20))


def test_what_one_client_sets_another_reads(host: StoreHost) -> None:
    client(host).multi_set(["a/1", "a/2", "b"], ["one", b"\0two", ""])
    other = client(host)
    assert other.get("a/2") == b"\0two"
    assert other.multi_get(["b", "a/1"]) == [b"", b"one"]
    assert other.check(["a/1", "b"])
    assert not other.check(["a/1", "c"])
    assert other.num_keys() == 3


def test_a_large_value_arrives_whole(host: StoreHost) -> None:
    value = bytes(range(256)) * 40_000
    client(host).set("large", value)
    assert client(host).get("large") == value


def test_a_key_is_written_once(host: StoreHost) -> None:
    store = client(host)
    store.set("a", "one")
    store.set("a", "one")
    with pytest.raises(dist.DistStoreError, match="refuses: a has another value already"):
        client(host).set("a", "two")
    assert store.delete_key("a")
    assert not store.delete_key("a")
    store.set("a", "two")
    assert store.get("a") == b"two"


def test_a_counter_is_never_remembered(host: StoreHost) -> None:
    store, other = client(host), client(host)
    assert (store.add("n", 2), other.add("n", -5)) == (2, -3)
    assert store.get("n") == b"-3"
    other.add("n", 10)
    assert store.get("n") == b"7"
    with pytest.raises(dist.DistStoreError, match="n has another value"):
        store.set("n", "x")


def test_who_waits_is_answered_when_the_last_key_is_there(host: StoreHost) -> None:
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client(host).multi_get, ["a/0", "a/1", "a/2"])
        for rank in (2, 0, 1):
            assert not waits.done()
            client(host).set(f"a/{rank}", str(rank))
        assert waits.result(SOON_S) == [b"0", b"1", b"2"]


def test_one_client_waits_in_one_thread_and_sets_in_another(host: StoreHost) -> None:
    store = client(host)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(store.wait, ["a"])
        store.set("a", "one")
        waits.result(SOON_S)


def test_a_wait_that_ends_too_early_can_be_repeated(host: StoreHost) -> None:
    store = client(host)
    for _ in range(3):
        with pytest.raises(dist.DistStoreError, match=r"timed out after 0\.2 s"):
            store.wait(["a"], SHORT)
    client(host).set("a", "one")
    store.wait(["a"], SHORT)
    assert store.get("a") == b"one"


def test_a_host_that_ends_is_named_to_those_that_wait(host: StoreHost) -> None:
    with ThreadPoolExecutor(1) as pool:
        store = client(host)
        waits = pool.submit(store.wait, ["never"])
        store.set("here", "yes")
        begin = time.monotonic()
        host.close()
        with pytest.raises(dist.DistNetworkError, match=f"127.0.0.1:{host.port} is gone"):
            waits.result()
    assert time.monotonic() - begin < SOON_S
    with pytest.raises(dist.DistNetworkError, match="is gone"):
        client(host)


def test_nonsense_on_one_connection_disturbs_no_other(host: StoreHost) -> None:
    store = client(host)
    for nonsense in (
        struct.pack("!I", 1 << 31),
        struct.pack("!II", 8, 99),
        b"\0\0\0\5\0\0\0\1\x09",
        b"\0\0\0\3abc",  # no room for the length of a part
        b"\x16\x03\x01\x02\0",  # as TLS begins
        b"GET / HTTP/1.1\r\n",
        message(b"\0", b"\xff", b"one"),  # no text
        message(b"\2", b"n", b"1" + b"0" * 4000),
        message(b"\1", b"never") + message(b"\5"),  # a question before the answer to another
    ):
        with socket.create_connection(("127.0.0.1", host.port), SOON_S) as stranger:
            stranger.sendall(nonsense + b"\0" * 8)
            assert stranger.recv(1) == b"", "it was answered"
    store.set("a", "one")
    assert store.get("a") == b"one"


BYTES = st.binary(max_size=20)
MESSAGES = st.builds(
    lambda op, parts: message(op, *parts),
    st.integers(0, 8).map(lambda op: bytes([op])),
    st.lists(st.sampled_from([b"", b"a", b"b/c", b"-1"]) | BYTES, max_size=4),
)
HEADERS = st.integers(0, 2**32 - 1).map(lambda length: struct.pack("!I", length))


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.lists(MESSAGES | HEADERS | BYTES, max_size=6), st.integers(0, 100))
def test_whatever_a_stranger_sends_others_are_served(pieces: list[bytes], cut: int) -> None:
    with ThreadPoolExecutor(1) as pool, closing(host_store("127.0.0.1")) as host:
        waits = pool.submit(client(host).get, "waited for")
        sent = b"".join(pieces)
        with socket.create_connection(("127.0.0.1", host.port), SOON_S) as stranger:
            # Where it has been dropped already the rest cannot be sent, or its end be told.
            with suppress(OSError):
                stranger.sendall(sent[: len(sent) - cut])
                stranger.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                while stranger.recv(1 << 16):
                    pass
        client(host).set("waited for", "one")
        assert waits.result(SOON_S) == b"one"


def test_clients_that_vanish_while_they_wait_disturb_no_other(host: StoreHost) -> None:
    store = client(host)
    for round_ in range(20):
        strangers = [socket.create_connection(("127.0.0.1", host.port), SOON_S) for _ in range(20)]
        for stranger in strangers:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stranger.sendall(waiting_for(f"a/{round_}"))
        for stranger in strangers:
            stranger.close()  # with a reset, before it is answered or after
        store.set(f"a/{round_}", "one")
    assert store.num_keys() == 20


def waiting_for(key: str) -> bytes:
    """A request for a key, as it goes over the wire."""
    return message(b"\1", key.encode())


def message(*parts: bytes) -> bytes:
    """A message of some parts, as it goes over the wire."""
    body = b"".join(struct.pack("!I", len(part)) + part for part in parts)
    return struct.pack("!I", len(body)) + body


def test_a_host_that_nobody_keeps_ends() -> None:
    host = host_store("127.0.0.1")
    store = client(host)
    del host
    with pytest.raises(dist.DistNetworkError, match="is gone"):
        store.wait(["never"])


@pytest.mark.parametrize("size", [2, 5])
def test_process_groups_of_gloo_connect_over_it(host: StoreHost, size: int) -> None:
    def reduce(rank: int) -> float:
        store = client(host)
        limit = timedelta(seconds=20)
        for name in ("first", "second"):
            group = dist.ProcessGroupGloo(PrefixStore(name, store), rank, size, limit)
            tensor = torch.full((3,), float(rank))
            group.allreduce([tensor]).wait()
        return float(tensor[0])

    with ThreadPoolExecutor(size) as pool:
        sums = list(pool.map(reduce, range(size)))
    assert sums == [sum(range(size))] * size
