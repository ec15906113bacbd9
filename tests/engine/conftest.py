"""What the engine's tests share: a pool of workers, and a text."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.worker_pool import WorkerPool, running_pool


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """Twelve workers for each module: they keep the process groups of every layout that they have
    seen, and each has a thread that wakes up a hundred times a second.
    """
    with running_pool(12) as pool:
        yield pool


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_bytes(Path(socket.__file__).read_bytes())
    return str(path)
