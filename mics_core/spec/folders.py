"""How a job's checkpoint folder is laid out; known to those who check it without torch too."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["complete_checkpoints"]

_NAME = re.compile(r"^step-(\d{8,})$")


def complete_checkpoints(directory: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints in a folder with their steps, oldest first."""
    if not directory.is_dir():
        return []
    found = [(_NAME.match(path.name), path) for path in directory.iterdir() if path.is_dir()]
    return sorted((int(match.group(1)), path) for match, path in found if match is not None)
