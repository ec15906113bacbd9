"""The files that a path or glob names, looked for without end or within a budget.

The rules are those of Python's `glob` with `recursive=True`, which cannot be stopped: `**` follows
links to folders, and below `/proc` they lead round in circles.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Search", "SearchEndedError", "expanded", "files_matching", "iterate_files"]


class SearchEndedError(Exception):
    """The budget of a search is used up."""


@dataclass(slots=True)
class Search:
    """How much may be looked at.

    Args:
        most_names: Names of files and folders.
        within_s: Seconds, from now on.
    """

    most_names: float = float("inf")
    within_s: float = float("inf")
    _num_names: int = field(default=0, init=False)
    _ends: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._ends = time.monotonic() + self.within_s

    def count(self) -> None:
        """Note that a name is looked at.

        Raises:
            SearchEndedError: It is one too many, or too late.
        """
        self._num_names += 1
        if self._num_names > self.most_names or time.monotonic() > self._ends:
            raise SearchEndedError


def expanded(path: str) -> Path:
    """Return the path with `~` resolved, or as it is where nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def files_matching(pattern: str) -> list[str]:
    """Return the files that a path or glob names, each once, sorted.

    Hidden files, such as those that editors leave behind, must be named as such. A file of exactly
    this name counts first, since names may hold brackets.
    """
    return sorted(set(iterate_files(pattern, Search())))


def iterate_files(pattern: str, search: Search) -> Iterator[str]:
    """Yield the files that a path or glob names, in any order, perhaps twice.

    Raises:
        SearchEndedError: There is more to look at than `search` allows.
    """
    path = expanded(pattern)
    if _is_file(path):
        yield str(path)
        return
    root, *parts = path.parts if path.is_absolute() else ("", *path.parts)
    for name in _below(root, parts, search):
        if _is_file(Path(name)):
            yield name


def _is_file(path: Path) -> bool:
    """Whether it is one; no name that is too long, or holds a null byte, is."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _below(root: str, parts: list[str], search: Search) -> Iterator[str]:
    """Yield what matches the parts of a pattern in a folder."""
    # Folders, each with the number of parts that have led there. No recursion: links lead deep.
    open_folders = [(root, 0)]
    while open_folders:
        folder, number = open_folders.pop()
        if number == len(parts):
            yield folder
            continue
        part, is_last = parts[number], number + 1 == len(parts)
        if part != "**" and not glob.has_magic(part):
            search.count()
            open_folders.append((_join(folder, part), number + 1))
            continue
        if part == "**":
            open_folders.append((folder, number + 1))
        matches = re.compile(fnmatch.translate(part)).match
        for name, is_folder in _names_in(folder, search):
            if name.startswith(".") and not part.startswith("."):
                continue
            if is_folder and part == "**":
                open_folders.append((_join(folder, name), number))
            elif matches(name) and (is_folder or is_last):
                if is_last:
                    yield _join(folder, name)
                else:
                    open_folders.append((_join(folder, name), number + 1))


def _names_in(folder: str, search: Search) -> Iterator[tuple[str, bool]]:
    """Yield the names in a folder, and whether each is one itself; none where it cannot be read."""
    try:
        entries = os.scandir(folder or ".")
    except (OSError, ValueError):
        return
    with entries:
        for entry in entries:
            search.count()
            yield entry.name, _is_folder(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _join(folder: str, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118
