"""A text to train on."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "code.txt"
    path.write_bytes(Path(socket.__file__).read_bytes())
    return str(path)
