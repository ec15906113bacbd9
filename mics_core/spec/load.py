"""Reads job specifications from Python objects and YAML files, with errors people can act on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mics_core.errors import Problem, SpecificationError
from mics_core.planner.clusters import names_a_file
from mics_core.spec.job import FileData, JobSpec, TransformersModel
from mics_core.spec.matching import expanded
from mics_core.spec.problems import problems_of, shown
from mics_core.spec.yaml_file import read_yaml

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
    value = read_yaml(path)
    return _with_absolute_paths(parse_job_spec(value), path.resolve().parent)


def _with_absolute_paths(spec: JobSpec, folder: Path) -> JobSpec:
    def absolute(path: str) -> str:
        return path if "://" in path else str(folder / expanded(path))

    changes: dict[str, Any] = {}
    if isinstance(spec.data, FileData):
        paths = [absolute(path) for path in spec.data.paths]
        changes["data"] = spec.data.model_copy(update={"paths": paths})
    if isinstance(spec.model, TransformersModel) and spec.model.weights:
        weights = absolute(spec.model.weights)
        changes["model"] = spec.model.model_copy(update={"weights": weights})
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
