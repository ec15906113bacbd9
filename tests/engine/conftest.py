"""What the engine's tests share: a pool of workers, a text, and writers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.odd_storage import DEADLINE_S, odd_storage
from tests.engine.worker_pool import WorkerPool, running_pool
from tests.engine.writers import Writers


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    """`NUM_WORKERS` of the module, or twelve; anew for each module that asks for more than four.

    Workers keep the process groups of every layout that they have seen, and each has a thread that
    wakes up a hundred times a second.
    """
    wanted: int = getattr(request.module, "NUM_WORKERS", 12)
    if wanted == 4:
        yield request.getfixturevalue("small_pool")
        return
    with running_pool(wanted) as pool:
        yield pool


@pytest.fixture(scope="package")
def small_pool() -> Iterator[WorkerPool]:
    """Four workers for all modules whose layouts have no more."""
    with running_pool(4) as pool:
        yield pool


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_bytes(Path(socket.__file__).read_bytes())
    return str(path)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    """Three groups; none of their threads may be left."""
    made = Writers(tmp_path, 3)
    with odd_storage(made.before):
        yield made
        made.close()
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
