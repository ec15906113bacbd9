"""Storages of fsspec that do what a test says: wait, or raise what no standard knows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import fsspec
import torch.distributed as dist
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mics_core.engine import checkpoint
from mics_core.spec import JobSpec
from tests.engine.layouts import train_over_groups

PATHS, STORE = PROTOCOLS = ("odd", "oddstore")
DEADLINE_S = 30.0


class OddError(Exception):
    """As clients of object stores raise them: no OSError, and nothing that could be pickled."""

    def __init__(self, operation: str, response: dict[str, Any]):
        super().__init__(f"An error occurred (SlowDown) when calling {operation}: {response}")
        self.connection = threading.Lock()


class OddFileSystem(LocalFileSystem):
    """Local files under a protocol of their own; `before` is asked before every call."""

    protocol = PATHS
    before: ClassVar[Callable[[str, str], None]] = staticmethod(lambda call, path: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(LocalFileSystem._strip_protocol(str(path).removeprefix(f"{PATHS}://")))


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


class OddStore(AbstractFileSystem):
    """An object store over an `OddFileSystem`: it has no links, and a copy for a new name."""

    protocol = STORE

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._files = OddFileSystem(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return OddFileSystem._strip_protocol(str(path).removeprefix(f"{STORE}://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        return self._files.ls(self._strip_protocol(path), detail=detail, **options)

    def info(self, path: str, **options: Any) -> Any:
        return self._files.info(self._strip_protocol(path), **options)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._files.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def cp_file(self, path1: str, path2: str, **_options: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))

    def _rm(self, path: str) -> None:
        self._files.rm(path, recursive=self._files.isdir(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._files.rm(self._strip_protocol(path), recursive=recursive, maxdepth=maxdepth)

    def _open(self, path: str, mode: str = "rb", **_options: Any) -> Any:
        return self._files.open(path, mode)


@contextmanager
def odd_storage(before: Callable[[str, str], None]) -> Iterator[None]:
    """Have folders of `PROTOCOLS` in this process; `before` gets each call's name and path."""
    fsspec.register_implementation(PATHS, OddFileSystem, clobber=True)
    fsspec.register_implementation(STORE, OddStore, clobber=True)
    usual = OddFileSystem.before
    OddFileSystem.before = staticmethod(before)
    try:
        yield
    finally:
        OddFileSystem.before = staticmethod(usual)


def train_on_odd_storage(spec: JobSpec, groups: int, size: int) -> dict[str, Any] | None:
    """For the worker pool: nothing befalls what is written."""
    with odd_storage(lambda _call, _path: None):
        return train_over_groups(spec, groups, size)


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
