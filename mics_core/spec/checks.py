"""Checks of a specification against the file system, made before anything is started."""

from __future__ import annotations

import itertools
import os

import fsspec

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.folders import CheckpointFolder, protocol_of
from mics_core.spec.job import FileData, JobSpec, TransformersModel
from mics_core.spec.matching import Search, SearchEndedError, expanded, iterate_files

__all__ = ["check_files"]

_MOST_FILES = 1_000
"""Files of a pattern that are looked at: the workers look at all of them."""
_MOST_NAMES = 50_000
_SEARCH_WITHIN_S = 10.0
_STORES = ("file", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
"""What a URL of these names is a bucket or folder of a store that was set up, and no host."""


def check_files(spec: JobSpec, *, by_service: bool = False) -> None:
    """Check that every file which `spec` names is there and can be read.

    Args:
        spec: The job.
        by_service: Whether a service asks, for users who may not know its machine, and whose job's
            driver checks again: no long search for files, and no host asked that a user names.

    Raises:
        SpecificationError: Names each missing file, its field and the remedy.
    """
    problems = []
    search = Search(_MOST_NAMES, _SEARCH_WITHIN_S) if by_service else Search()
    if isinstance(spec.data, FileData):
        for index, pattern in enumerate(spec.data.paths):
            problems += _problems_of_pattern(f"data.paths.{index}", pattern, search)
    if isinstance(spec.model, TransformersModel) and spec.model.weights:
        problems += _problems_of_pattern(
            "model.weights", f"{spec.model.weights.rstrip('/')}/*.safetensors", search
        )
    if spec.tokenizer.path:
        problems += _problems_of_pattern("tokenizer.path", spec.tokenizer.path, search)
    directory = spec.checkpoint.directory
    if directory and by_service and protocol_of(directory) not in _STORES:
        problems += _problems_of_protocol(directory)
    elif directory:
        problems += _problems_of_checkpoints(directory, spec.checkpoint.resume)
    if problems:
        raise SpecificationError(problems)


def _problems_of_protocol(url: str) -> list[Problem]:
    """Find out whether anything here opens such a URL, without opening it."""
    try:
        for protocol in protocol_of(url).split("::"):
            fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        return [
            Problem(
                "checkpoint.directory",
                repr(url),
                f"nothing here opens such a URL: {error}.",
                "Correct it, or install the package of its file system on all nodes.",
            )
        ]
    return []


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


def _problems_of_pattern(field: str, pattern: str, search: Search) -> list[Problem]:
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
    looked_at, num_unreadable = 0, 0
    try:
        for name in itertools.islice(iterate_files(pattern, search), _MOST_FILES):
            looked_at += 1
            num_unreadable += not os.access(name, os.R_OK)
    except SearchEndedError:
        if not looked_at:
            return [
                Problem(
                    field,
                    repr(pattern),
                    f"no file was found in {_SEARCH_WITHIN_S:g} s or among {_MOST_NAMES} names.",
                    "Name the folder that holds the files, with fewer folders under it.",
                )
            ]
    if not looked_at:
        return [
            Problem(
                field,
                repr(pattern),
                "no file matches it on this machine.",
                "Check the path; it must exist on every node of the cluster.",
            )
        ]
    if num_unreadable:
        # Its name is told to nobody who does not know it.
        which = "it" if looked_at == 1 else f"{num_unreadable} of {looked_at} files"
        return [
            Problem(
                field,
                repr(pattern),
                f"{which} cannot be read.",
                "Give read access to whom the service and the workers run as.",
            )
        ]
    return []
