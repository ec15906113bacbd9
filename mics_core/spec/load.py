"""Reads job specifications from Python objects and YAML files, with errors people can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mics_core.errors import Problem, SpecificationError
from mics_core.spec import job as job_module
from mics_core.spec.job import JobSpec

__all__ = ["load_job_spec", "parse_job_spec", "problems_of"]

_UNION_TAGS = {"transformers", "callable", "files"}


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
                    value=_shown(value),
                    rule="a job specification is a mapping of fields.",
                    remedy="Start with `name:`, `model:`, `data:` and `training:`.",
                )
            ]
        )
    try:
        return JobSpec.model_validate(value)
    except ValidationError as error:
        raise SpecificationError(problems_of(error)) from None


def load_job_spec(path: str | Path) -> JobSpec:
    """Read a YAML file; relative paths in it are taken from the file's own folder.

    Raises:
        SpecificationError: The file cannot be read, is no YAML, or breaks a rule.
    """
    path = Path(path)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecificationError(
            [
                Problem(
                    field="(file)",
                    value=str(path),
                    rule=f"it cannot be read ({getattr(error, 'strerror', None) or error}).",
                    remedy="Name an existing YAML file.",
                )
            ]
        ) from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where is not None else ""
        raise SpecificationError(
            [
                Problem(
                    field="(file)",
                    value=str(path),
                    rule=f"it is no valid YAML{line}: {getattr(error, 'problem', error)}.",
                    remedy="Correct the file's syntax.",
                )
            ]
        ) from None
    return _with_absolute_paths(parse_job_spec(value), path.resolve().parent)


def _with_absolute_paths(spec: JobSpec, folder: Path) -> JobSpec:
    def absolute(path: str) -> str:
        return path if "://" in path else str(folder / Path(path).expanduser())

    changes: dict[str, Any] = {}
    if isinstance(spec.data, job_module.FileData):
        paths = [absolute(path) for path in spec.data.paths]
        changes["data"] = spec.data.model_copy(update={"paths": paths})
    if spec.tokenizer.path:
        changes["tokenizer"] = spec.tokenizer.model_copy(
            update={"path": absolute(spec.tokenizer.path)}
        )
    if spec.checkpoint.directory:
        changes["checkpoint"] = spec.checkpoint.model_copy(
            update={"directory": absolute(spec.checkpoint.directory)}
        )
    return spec.model_copy(update=changes)


def problems_of(error: ValidationError) -> list[Problem]:
    """Return pydantic's findings as problems with a remedy each."""
    return [_problem(detail) for detail in error.errors(include_url=False)]


def _problem(detail: Any) -> Problem:
    names = [str(part) for part in detail["loc"] if part not in _UNION_TAGS]
    if detail["loc"] and detail["loc"][-1] == "callable":
        names.append("callable")
    field, value, kind = ".".join(names) or "(job)", _shown(detail["input"]), detail["type"]
    if kind == "extra_forbidden":
        known = _known_fields(detail["loc"])
        close = difflib.get_close_matches(names[-1], known, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(known)}."
        return Problem(field, value, "there is no such field.", hint)
    if kind == "missing":
        return Problem(field, "(nothing)", "this field is required.", f"Add `{names[-1]}`.")
    if kind == "value_error":
        rule, _, remedy = str(detail["ctx"]["error"]).partition(". ")
        where = _mentioned_field(field, rule)
        return Problem(where, _value_at(detail["input"], where, field), rule + ".", remedy)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return Problem(field, value, f"{message}.", "Correct this field.")


def _mentioned_field(field: str, rule: str) -> str:
    """A rule over several fields is reported at the one that its sentence names first."""
    first = rule.split(" ", 1)[0]
    if "(" not in first and not first.replace("_", "").replace(".", "").isalpha():
        return field
    is_field = any(
        first.split(".")[-1] in model.model_fields
        for model in vars(job_module).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
    )
    if not is_field:
        return field
    return first if field == "(job)" else f"{field}.{first}"


def _value_at(value: Any, where: str, base: str) -> str:
    for name in where.removeprefix(base).strip(".").split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, BaseModel) and hasattr(value, name):
            value = getattr(value, name)
    return _shown(value)


def _known_fields(location: tuple[Any, ...]) -> list[str]:
    """Names of the fields that the model at `location` has."""
    tags = {
        ("model", "transformers"): job_module.TransformersModel,
        ("model", "callable"): job_module.CallableModel,
        ("data", "files"): job_module.FileData,
        ("data", "callable"): job_module.CallableData,
    }
    if tagged := tags.get(location[:2]):
        return sorted(tagged.model_fields)
    model: type[BaseModel] = JobSpec
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(model.model_fields)


def _shown(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
