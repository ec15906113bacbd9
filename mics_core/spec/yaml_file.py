"""Reads one YAML file, with errors people can act on: the file, the rule, the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mics_core.errors import Problem, SpecificationError

__all__ = ["read_yaml"]


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        SpecificationError: The file cannot be read or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no possible file name
        reason = getattr(error, "strerror", None) or error
        raise _refusal(
            path, f"it cannot be read ({reason}).", "Name an existing YAML file."
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        rule = f"it is no valid YAML{line}: {getattr(error, 'problem', error)}."
        raise _refusal(path, rule, "Correct the file's syntax.") from None
    except (ValueError, RecursionError) as error:  # no such date, thousands of digits or brackets
        raise _refusal(
            path, f"it holds a value that YAML cannot read: {error}.", "Put it in quotes."
        ) from None


def _refusal(path: Path, rule: str, remedy: str) -> SpecificationError:
    return SpecificationError([Problem("(file)", str(path), rule, remedy)])
