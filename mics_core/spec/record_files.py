"""Small files that say what lies beside them: a reader sees all of one or none."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem

__all__ = ["content_of", "put", "put_over"]

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}
"""What file systems say that have no hard links, such as those over object stores."""


def content_of(files: AbstractFileSystem, path: str) -> bytes | None:
    """Return what a file holds; none if it is not there."""
    try:
        content: bytes = files.cat_file(path)
    except FileNotFoundError:
        return None
    return content


def put(files: AbstractFileSystem, path: str, value: Any) -> None:
    """Write a value as JSON."""
    if not _is_local(files):
        files.pipe_file(path, _as_json(value))
        return
    with _written_beside(files, path, value) as new:
        files.mv(new, path)


def put_over(files: AbstractFileSystem, path: str, value: Any, seen: bytes | None) -> bool:
    """Write a value as `put` does, unless the file is not what was seen any more.

    Only one that is created is sure not to replace another: see [Note: two attempts at one
    checkpoint] in `mics_core.spec.folders`.

    Args:
        files: The file system.
        path: Where to.
        value: What to write.
        seen: What the file held, or none if it was not there.

    Returns:
        Whether it is written.
    """
    if content_of(files, path) != seen:
        return False
    if seen is None and not _is_local(files):
        return _create(files, path, value)
    if seen is None:
        with _written_beside(files, path, value) as new:
            try:
                files.link(new, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            else:
                return True
    put(files, path, value)
    return True


def _create(files: AbstractFileSystem, path: str, value: Any) -> bool:
    """Create a file where there are no paths; object stores do so in one request, or refuse it."""
    content = _as_json(value)
    try:
        files.pipe_file(path, content, mode="create")
    except TypeError:  # a file system that knows of no such mode: see the note
        files.pipe_file(path, content)
    except Exception:  # each storage has another word for it, and some try again by themselves
        found = content_of(files, path)
        if found is None:
            raise
        return found == content
    return True


def _is_local(files: AbstractFileSystem) -> bool:
    return isinstance(files, fsspec.get_filesystem_class("file"))


@contextmanager
def _written_beside(files: AbstractFileSystem, path: str, value: Any) -> Iterator[str]:
    """Write a local file under a name that nobody else has, to give it its own at once."""
    new = f"{path}.{uuid4().hex}.new"
    try:
        files.pipe_file(new, _as_json(value))
        yield new
    finally:
        with suppress(OSError):  # it has its name by now, or what counts is why it has not
            files.rm_file(new)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
