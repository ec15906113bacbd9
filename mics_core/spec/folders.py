"""A job's checkpoints as they lie in its folder; known to those who look without torch too.

    step-00000100/
      part-0-5e884898/       what partition group 0 wrote, as torch.distributed.checkpoint does
      part-0-5e884898.json   its parameters, and its files with their sizes and hashes
      part-1-5e884898/ …
      mics.json              all parts: written last, so that a checkpoint is complete or invisible

The folder is a local path or any URL that fsspec opens. Object stores cannot rename, so no name but
that of `mics.json` says that a checkpoint is whole.

[Note: two attempts at one checkpoint]
A step's checkpoint may be tried again while somebody still works on an earlier attempt: a group
that was stopped, counts as lost, and wakes up. So all names of an attempt end in what tells it from
others, nobody writes a file of another attempt, and a whole checkpoint is not replaced: whichever
attempt is complete first stays, with all its files. Its record is created where none was, or put in
the place of the very one that was seen to be damaged. Paths make sure of the first, and the object
stores that create a file only where none is (S3, Google's and Azure's do). Others, and a mount
without hard links, are asked right before it, which leaves a moment: an attempt that is cut off
just then, and goes on when the others have completed theirs, puts its record over theirs, and the
checkpoint counts as damaged. So may one of two that replace the same damaged record at once.

What others left goes when one is complete (`remove_other_attempts`). One that ends late does not
find its parts then, and fails.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from fsspec.core import url_to_fs

from mics_core.errors import CheckpointDamagedError, CheckpointError
from mics_core.spec.data_order import DataOrder
from mics_core.spec.record_files import content_of, put, put_over

__all__ = [
    "LONGEST_ANSWER_S",
    "LONGEST_WRITE_S",
    "CheckpointFolder",
    "Part",
    "StoredCheckpoint",
    "StoredFile",
    "path_of",
    "protocol_of",
]

LONGEST_WRITE_S = 600.0
"""How long a run that ends or pauses waits for a checkpoint."""
LONGEST_ANSWER_S = 1800.0
"""How long a run that trains leaves a checkpoint to its storage before it gives it up."""

_NAME = re.compile(r"^step-(\d{8,})$")
_MANIFEST = "mics.json"
_FORMAT = 3
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a part.

    Args:
        name: Its path in the checkpoint's folder.
        num_bytes: Its size.
        sha256: The hash of its content.
    """

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """What one partition group wrote.

    Args:
        number: 0, 1, …
        parameters: Names of its parameters and buffers.
        files: Its files.
        fingerprint: The same for all parts of one attempt, and another for each attempt.
    """

    number: int
    parameters: tuple[str, ...]
    files: tuple[StoredFile, ...]
    fingerprint: str

    @property
    def name(self) -> str:
        """Of its folder, and of its record."""
        return _name_of_part(self.number, self.fingerprint)


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A complete checkpoint.

    Args:
        step: Steps committed in it.
        path: Its folder, a path or URL.
        order: What the order of the data depends on, with which it was trained.
        parts: Its parts; every parameter is in one of them.
    """

    step: int
    path: str
    order: DataOrder
    parts: tuple[Part, ...]


class CheckpointFolder:
    """The checkpoints of a job.

    Args:
        url: The folder: a path, or a URL such as `s3://bucket/run`.

    Raises:
        CheckpointError: Nothing here opens such a URL.
    """

    def __init__(self, url: str):
        self._url = url.rstrip("/")
        try:
            self._files, root = url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise CheckpointError(
                f"{url} cannot be opened: {error}",
                remedy="Install the package of its file system, such as s3fs or gcsfs.",
            ) from error
        self._root: str = root.rstrip("/")

    def complete(self) -> list[tuple[int, str]]:
        """Return the steps and folders of all complete checkpoints, oldest first."""
        return sorted(
            (step, self.path_of(step)) for step in self._steps() if self.is_complete(step)
        )

    def is_complete(self, step: int) -> bool:
        """Whether the checkpoint of a step is there and whole.

        Raises:
            Exception: The storage does not say.
        """
        return self._exists(f"{self._inside(step)}/{_MANIFEST}")

    def path_of(self, step: int) -> str:
        """Return the folder of a step's checkpoint, as it is told to people and to torch."""
        return path_of(self._url, step)

    def path_of_part(self, step: int, part: Part) -> str:
        """Return the folder of a part."""
        return f"{self.path_of(step)}/{part.name}"

    def begin_part(self, step: int, part: Part) -> None:
        """Make room for a part."""
        path = f"{self._inside(step)}/{part.name}"
        try:
            self._files.makedirs(path, exist_ok=True)
        except FileNotFoundError:  # `discard` of another attempt found the step's folder empty
            self._files.makedirs(path, exist_ok=True)

    def end_part(self, step: int, part: Part) -> None:
        """Record a part that has been written, with the hashes of what lies there now."""
        inside = self._inside(step)
        found = self._files.find(f"{inside}/{part.name}", detail=False)
        files = tuple(self._stored(path, inside) for path in sorted(found))
        put(self._files, f"{inside}/{part.name}.json", asdict(replace(part, files=files)))

    def commit(self, step: int, num_parts: int, fingerprint: str, order: DataOrder) -> None:
        """Make a checkpoint visible whose parts have all been recorded, unless a whole one is.

        See [Note: two attempts at one checkpoint]. One that is damaged is replaced.

        Raises:
            OSError: A part is not there.
        """
        inside = self._inside(step)
        names = [_name_of_part(number, fingerprint) for number in range(num_parts)]
        parts = [self._get(f"{inside}/{name}.json") for name in names]
        record = {"format": _FORMAT, "step": step, "order": asdict(order), "parts": parts}
        while True:
            seen = content_of(self._files, f"{inside}/{_MANIFEST}")
            if self._is_whole(step):
                self.discard(step, fingerprint)
                return
            if put_over(self._files, f"{inside}/{_MANIFEST}", record, seen):
                return

    def remove_other_attempts(self, step: int) -> None:
        """Remove what other attempts than the one that is complete have left of a step."""
        inside = self._inside(step)
        names = [part.name for part in self.read(step).parts]
        ours = {_MANIFEST, *names, *(f"{name}.json" for name in names)}
        found = self._names_in(inside)
        if not ours.issubset(found):
            return  # it is the record of a late attempt, whose parts are gone: spare the others
        for name in found:
            if name.startswith(("part-", _MANIFEST)) and name not in ours:
                self._remove_if_there(f"{inside}/{name}")

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints, and what never became one before them."""
        kept = [step for step, _ in self.complete()][-keep:]
        for step in self._steps():
            if not kept or step in kept or step > kept[-1]:
                continue
            self._remove(self._inside(step))

    def discard(self, step: int, fingerprint: str) -> bool:
        """Remove what is left of an attempt that failed; nobody may be writing it.

        Returns:
            False if it is complete, and so stays.
        """
        inside = self._inside(step)
        if self.is_complete(step) and self._is_of(step, fingerprint):
            return False
        if not self._exists(inside):
            return True
        ours = _name_of_part(0, fingerprint).removeprefix("part-0")
        for name in self._names_in(inside):
            if ours in name:
                self._remove_if_there(f"{inside}/{name}")
        if self._exists(inside) and not self._names_in(inside):
            self._files.rmdir(inside)  # which spares what another attempt puts there just now
        return True

    def _is_of(self, step: int, fingerprint: str) -> bool:
        """Whether a complete checkpoint is this attempt's; a damaged record is nobody's."""
        try:
            return any(part.fingerprint == fingerprint for part in self.read(step).parts)
        except CheckpointError:
            return False

    def _is_whole(self, step: int) -> bool:
        """Whether a checkpoint is complete, and its files are what was written."""
        if not self.is_complete(step):
            return False
        try:
            stored = self.read(step)
        except CheckpointError:
            return False
        return not self.damage_of(stored, [file for part in stored.parts for file in part.files])

    def _remove(self, inside: str) -> None:
        if self._exists(f"{inside}/{_MANIFEST}"):
            self._files.rm(f"{inside}/{_MANIFEST}")  # first, so that no half of it is visible
        self._files.rm(inside, recursive=True)

    def read(self, step: int) -> StoredCheckpoint:
        """Return a complete checkpoint.

        Raises:
            CheckpointDamagedError: Its record is not one.
            CheckpointError: Another version wrote it.
            Exception: The storage does not give it.
        """
        path = self.path_of(step)
        content = self._files.cat_file(f"{self._inside(step)}/{_MANIFEST}")
        try:
            value = json.loads(content)
            if value["format"] != _FORMAT:
                raise CheckpointError(
                    f"{path} has format {value['format']}, and this version reads {_FORMAT}.",
                    remedy="Continue it with the version that wrote it.",
                )
            order = DataOrder(**value["order"])
            parts = tuple(
                Part(
                    part["number"],
                    tuple(part["parameters"]),
                    tuple(StoredFile(**file) for file in part["files"]),
                    part["fingerprint"],
                )
                for part in value["parts"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointDamagedError(
                f"{path}/{_MANIFEST} cannot be read: {type(error).__name__}: {error}",
                remedy="Remove that folder to continue from the checkpoint before it.",
            ) from error
        return StoredCheckpoint(step, path, order, parts)

    def damage_of(self, stored: StoredCheckpoint, files: Sequence[StoredFile]) -> str:
        """Compare files with their records; return what differs, or nothing.

        Raises:
            Exception: The storage does not give a file. It may be whole; one that is missing is
                damage.
        """
        inside = self._inside(stored.step)
        for file in files:
            try:
                found = self._stored(f"{inside}/{file.name}", inside)
            except FileNotFoundError:
                return f"{file.name} is not there."
            if found != file:
                return (
                    f"{file.name} has {found.num_bytes} bytes with hash {found.sha256[:12]}…,"
                    f" not {file.num_bytes} with {file.sha256[:12]}…."
                )
        return ""

    def _exists(self, path: str) -> bool:
        """Whether a file or folder is there; where storage does not say, fsspec's own says no."""
        try:
            self._files.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _steps(self) -> list[int]:
        try:
            names = self._names_in(self._root)
        except (FileNotFoundError, NotADirectoryError):
            return []
        matches = [_NAME.match(name) for name in names]
        return [int(match.group(1)) for match in matches if match is not None]

    def _names_in(self, path: str) -> list[str]:
        found = self._files.ls(path, detail=False, refresh=True)
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def _remove_if_there(self, path: str) -> None:
        with suppress(FileNotFoundError):  # whose attempt it was removes it too
            self._files.rm(path, recursive=True)

    def _inside(self, step: int) -> str:
        return f"{self._root}/{_name(step)}"

    def _stored(self, path: str, inside: str) -> StoredFile:
        digest, num_bytes = hashlib.sha256(), 0
        with self._files.open(path, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
        return StoredFile(path.removeprefix(f"{inside}/"), num_bytes, digest.hexdigest())

    def _get(self, path: str) -> Any:
        return json.loads(self._files.cat_file(path))


def path_of(url: str, step: int) -> str:
    """Return the folder of a step's checkpoint in a job's folder, without a look at it."""
    return f"{url.rstrip('/')}/{_name(step)}"


def protocol_of(url: str) -> str:
    """Return the protocol of a folder: `file` for a path."""
    return url.split("://", 1)[0] if "://" in url else "file"


def _name_of_part(number: int, fingerprint: str) -> str:
    return f"part-{number}-{hashlib.sha256(fingerprint.encode()).hexdigest()[:8]}"


def _name(step: int) -> str:
    return f"step-{step:08d}"
