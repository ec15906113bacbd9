"""A text to train on, and what a run comes to that nothing befalls."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from benchmarks.miniature.run import Miniature
from tests.faults.runs import SIZE, bitwise


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_bytes(Path(socket.__file__).read_bytes())
    return str(path)


@pytest.fixture(scope="package")
def undisturbed(text: str) -> dict[int, str]:
    """The bits of each worker's states after the `bitwise` run of one group."""
    with Miniature(bitwise(text), SIZE, 1) as run:
        run.finish()
        return run.groups[0].digests
