"""Reads job specifications from Python objects and YAML files, with errors people can act on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mics_core.errors import Problem, SpecificationError
from mics_core.planner.clusters import names_a_file
from mics_core.spec.checks import expanded
from mics_core.spec.job import FileData, JobSpec
from mics_core.spec.problems import problems_of, shown

__all__ = ["load_job_spec", "parse_job_spec", "problems_of"]


def parse_job_spec(value: Any) -> JobSpec:
    """Check `value` against the specification.

    Args:
        value: A mapping as YAML or JSON gives it.

    Raises:
        SpecificationError: Names every field that breaks a rule, its value, the rule, the remedy.
    """
    if not isinstance(value, Mapping):
        raise SpecificationError(
            [
                Problem(
                    field="(job)",
                    value=shown(value),
                    rule="a job specification is a mapping of fields.",
                    remedy="Start with `name:`, `model:`, `data:` and `training:`.",
                )
            ]
        )
    try:
        return JobSpec.model_validate(dict(value))
    except ValidationError as error:
        raise SpecificationError(problems_of(error)) from None


def load_job_spec(path: str | Path) -> JobSpec:
    """Read a YAML file; relative paths in it are taken from the file's own folder.

    Raises:
        SpecificationError: The file cannot be read, is no YAML, or breaks a rule.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no possible file name
        reason = getattr(error, "strerror", None) or error
        raise _refusal(
            path, f"it cannot be read ({reason}).", "Name an existing YAML file."
        ) from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark is not None else ""
        rule = f"it is no valid YAML{line}: {getattr(error, 'problem', error)}."
        raise _refusal(path, rule, "Correct the file's syntax.") from None
    except (ValueError, RecursionError) as error:  # no such date, thousands of digits or brackets
        raise _refusal(
            path, f"it holds a value that YAML cannot read: {error}.", "Put it in quotes."
        ) from None
    return _with_absolute_paths(parse_job_spec(value), path.resolve().parent)


def _refusal(path: Path, rule: str, remedy: str) -> SpecificationError:
    return SpecificationError([Problem("(file)", str(path), rule, remedy)])


def _with_absolute_paths(spec: JobSpec, folder: Path) -> JobSpec:
    def absolute(path: str) -> str:
        return path if "://" in path else str(folder / expanded(path))

    changes: dict[str, Any] = {}
    if isinstance(spec.data, FileData):
        paths = [absolute(path) for path in spec.data.paths]
        changes["data"] = spec.data.model_copy(update={"paths": paths})
    if spec.tokenizer.path:
        changes["tokenizer"] = spec.tokenizer.model_copy(
            update={"path": absolute(spec.tokenizer.path)}
        )
    cluster = spec.resources.cluster
    if cluster is not None and names_a_file(cluster):
        changes["resources"] = spec.resources.model_copy(update={"cluster": absolute(cluster)})
    if spec.checkpoint.directory:
        changes["checkpoint"] = spec.checkpoint.model_copy(
            update={"directory": absolute(spec.checkpoint.directory)}
        )
    return spec.model_copy(update=changes)
