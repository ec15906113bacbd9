"""Stands for the key-value store of Ray's head, where a test needs no cluster."""

from __future__ import annotations

import threading

import pytest
from ray.experimental import internal_kv

__all__ = ["Head", "head_in_place"]


class Head:
    """Ray's key-value store, as far as it is used; may be told to fail."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.puts: list[bytes] = []
        self.puts_left = 10**9
        self.answers = threading.Event()
        self.answers.set()

    def put(self, key: bytes, value: bytes, *, overwrite: bool, namespace: bytes) -> None:
        assert overwrite
        self.answers.wait()
        self.puts_left -= 1
        if self.puts_left < 0:
            raise RuntimeError("the head is away")
        self.puts.append(key)
        self.values[key] = value

    def get(self, key: bytes, *, namespace: bytes) -> bytes | None:
        return self.values.get(key)

    def list(self, prefix: bytes, *, namespace: bytes) -> list[bytes]:
        return [key for key in self.values if key.startswith(prefix)]

    def delete(self, key: bytes, *, del_by_prefix: bool = False, namespace: bytes) -> None:
        doomed = self.list(key, namespace=namespace) if del_by_prefix else [key]
        for name in doomed:
            del self.values[name]


def head_in_place(monkeypatch: pytest.MonkeyPatch) -> Head:
    """Return a store that this process takes for that of Ray's head."""
    head = Head()
    for name, function in (
        ("put", head.put),
        ("get", head.get),
        ("list", head.list),
        ("del", head.delete),
    ):
        monkeypatch.setattr(internal_kv, f"_internal_kv_{name}", function)
    return head
