"""Checks of a specification against the file system, made before anything is started."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.job import FileData, JobSpec

__all__ = ["check_files", "files_matching"]


def files_matching(pattern: str) -> list[str]:
    """Return the files that a path or glob names, sorted, without folders."""
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    return sorted(name for name in found if os.path.isfile(name))  # noqa: PTH113


def check_files(spec: JobSpec) -> None:
    """Check that every file which `spec` names is there and can be read.

    Raises:
        SpecificationError: Names each missing file, its field and the remedy.
    """
    problems = []
    if isinstance(spec.data, FileData):
        for index, pattern in enumerate(spec.data.paths):
            problems += _problems_of_pattern(f"data.paths.{index}", pattern)
    if spec.tokenizer.path:
        problems += _problems_of_pattern("tokenizer.path", spec.tokenizer.path)
    if problems:
        raise SpecificationError(problems)


def _problems_of_pattern(field: str, pattern: str) -> list[Problem]:
    if not Path(pattern).expanduser().is_absolute():
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
