"""A file system of fsspec that does what a test says: waits, or raises what no standard knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import fsspec
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from mics_core.engine import checkpoint
from mics_core.spec import JobSpec
from tests.engine.layouts import train_over_groups

PROTOCOL = "odd"
DEADLINE_S = 30.0


class OddError(Exception):
    """As clients of object stores raise them: no OSError, and nothing that could be pickled."""

    def __init__(self, operation: str, response: dict[str, Any]):
        super().__init__(f"An error occurred (SlowDown) when calling {operation}: {response}")
        self.connection = threading.Lock()


class OddFileSystem(LocalFileSystem):
    """Local files under a protocol of their own; `before` is asked before every call."""

    protocol = PROTOCOL
    before: ClassVar[Callable[[str, str], None]] = staticmethod(lambda call, path: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix(f"{PROTOCOL}://")))


def _watched(name: str) -> Callable[..., Any]:
    def call(self: OddFileSystem, path: Any, *arguments: Any, **options: Any) -> Any:
        OddFileSystem.before(name, str(path))
        return getattr(LocalFileSystem, name)(self, path, *arguments, **options)

    return call


CALLS = (
    "cat_file",
    "exists",
    "find",
    "info",
    "link",
    "ls",
    "makedirs",
    "mv",
    "open",
    "pipe_file",
    "rename",
    "rm",
)
for _name in CALLS:
    setattr(OddFileSystem, _name, _watched(_name))


@contextmanager
def odd_storage(before: Callable[[str, str], None]) -> Iterator[None]:
    """Have `odd://` folders in this process; `before` gets the name of the call and the path."""
    fsspec.register_implementation(PROTOCOL, OddFileSystem, clobber=True)
    usual = OddFileSystem.before
    OddFileSystem.before = staticmethod(before)
    try:
        yield
    finally:
        OddFileSystem.before = staticmethod(usual)


def train_where_a_write_fails(spec: JobSpec, groups: int, size: int) -> dict[str, Any] | None:
    """For the worker pool: rank 1 of group 1 cannot write its file of the checkpoint of step 2."""
    fails = dist.get_rank() == size + 1

    def before(call: str, path: str) -> None:
        if fails and call == "open" and "/step-00000002/" in path:
            raise OddError("PutObject", {"Status": 503})

    with odd_storage(before):
        return train_over_groups(spec, groups, size)


def train_where_storage_hangs(spec: JobSpec, groups: int, size: int) -> dict[str, Any] | None:
    """For the worker pool: nothing of step 2 is answered until the run has ended."""
    has_ended = threading.Event()

    def before(_call: str, path: str) -> None:
        if "/step-00000002" in path:
            assert has_ended.wait(DEADLINE_S)

    limits = mock.patch.multiple(checkpoint, LONGEST_WRITE_S=1.0, _LOOK_AGAIN_S=0.1)
    with odd_storage(before), limits:
        try:
            return train_over_groups(spec, groups, size)
        finally:
            has_ended.set()
            for thread in threading.enumerate():
                if thread.name == "checkpoint":
                    thread.join(DEADLINE_S)
                    assert not thread.is_alive()
