"""Checks of a specification against the file system, made before anything is started."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.folders import CheckpointFolder, protocol_of
from mics_core.spec.job import FileData, JobSpec, TransformersModel

__all__ = ["check_files", "expanded", "files_matching"]


def expanded(path: str) -> Path:
    """Return the path with `~` resolved, or as it is where nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def files_matching(pattern: str) -> list[str]:
    """Return the files that a path or glob names, sorted, without folders and hidden files.

    A file of exactly this name counts first, since names may hold brackets.
    """
    path = expanded(pattern)
    if _is_file(path):
        return [str(path)]
    # Not Path.glob: it would also give hidden files, such as those that editors leave behind.
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207
    return sorted(name for name in found if _is_file(Path(name)))


def check_files(spec: JobSpec) -> None:
    """Check that every file which `spec` names is there and can be read.

    Raises:
        SpecificationError: Names each missing file, its field and the remedy.
    """
    problems = []
    if isinstance(spec.data, FileData):
        for index, pattern in enumerate(spec.data.paths):
            problems += _problems_of_pattern(f"data.paths.{index}", pattern)
    if isinstance(spec.model, TransformersModel) and spec.model.weights:
        problems += _problems_of_pattern(
            "model.weights", f"{spec.model.weights.rstrip('/')}/*.safetensors"
        )
    if spec.tokenizer.path:
        problems += _problems_of_pattern("tokenizer.path", spec.tokenizer.path)
    if spec.checkpoint.directory:
        problems += _problems_of_checkpoints(spec.checkpoint.directory, spec.checkpoint.resume)
    if problems:
        raise SpecificationError(problems)


def _problems_of_checkpoints(directory: str, resume: bool) -> list[Problem]:
    folder = expanded(directory)
    if protocol_of(directory) == "file" and not folder.is_absolute():
        return [
            Problem(
                "checkpoint.directory",
                repr(directory),
                "it must be an absolute path that means the same folder on every node, or a URL.",
                "Give the absolute path of a shared folder, or a URL such as s3://bucket/run.",
            )
        ]
    try:
        found = CheckpointFolder(directory if "://" in directory else str(folder)).complete()
    except Exception as error:  # storage has errors of its own making
        return [
            Problem(
                "checkpoint.directory",
                repr(directory),
                f"it cannot be read: {error}",
                "Give a folder that the service and all nodes can read and write.",
            )
        ]
    if not resume and found:
        return [
            Problem(
                "checkpoint.resume",
                "False",
                f"the folder holds checkpoints of another run, up to step {found[-1][0]}, which"
                " this run's would mix with.",
                "Name an empty folder, or set checkpoint.resume to true to continue.",
            )
        ]
    return []


def _problems_of_pattern(field: str, pattern: str) -> list[Problem]:
    if "://" in pattern:
        return [
            Problem(
                field,
                repr(pattern),
                "only files are read, not URLs.",
                "Copy the data to a folder that all nodes see, and name that.",
            )
        ]
    if not expanded(pattern).is_absolute():
        return [
            Problem(
                field,
                repr(pattern),
                "a relative path means another file on every machine.",
                "Give the absolute path, or submit from a YAML file, whose folder then counts.",
            )
        ]
    files = files_matching(pattern)
    if not files:
        return [
            Problem(
                field,
                repr(pattern),
                "no file matches it on this machine.",
                "Check the path; it must exist on every node of the cluster.",
            )
        ]
    unreadable = [name for name in files if not os.access(name, os.R_OK)]
    if unreadable:
        return [
            Problem(
                field, repr(unreadable[0]), "the file cannot be read.", "Give the service access."
            )
        ]
    return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        return False
