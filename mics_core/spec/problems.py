"""Turns pydantic's findings into problems that people can act on: field, value, rule, remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from mics_core.errors import Problem
from mics_core.spec import job as job_module
from mics_core.spec.job import JobSpec
from mics_core.spec.peaks import PeakTflops
from mics_core.spec.rules import RuleError

__all__ = ["problems_of", "shown"]

_TAGGED_MODELS: dict[tuple[int | str, ...], type[BaseModel]] = {
    ("model", "transformers"): job_module.TransformersModel,
    ("model", "callable"): job_module.CallableModel,
    ("data", "files"): job_module.FileData,
    ("data", "callable"): job_module.CallableData,
    ("peak_tflops", "by precision"): PeakTflops,
}
_TAGGED_NUMBER = ("peak_tflops", "number")

_REMEDIES = {
    "bool_parsing": "Give true or false.",
    "bool_type": "Give true or false.",
    "dict_type": "Give a mapping.",
    "finite_number": "Give a finite number.",
    "float_parsing": "Give a number.",
    "float_type": "Give a number.",
    "greater_than": "Give a number above {gt}.",
    "greater_than_equal": "Give at least {ge}.",
    "int_from_float": "Give a whole number.",
    "int_parsing": "Give a whole number.",
    "int_type": "Give a whole number.",
    "invalid_key": "Put the name in quotes.",
    "less_than": "Give a number below {lt}.",
    "less_than_equal": "Give at most {le}.",
    "list_type": "Give a list.",
    "literal_error": "Choose {expected}.",
    "string_too_long": "Shorten it to {max_length} characters.",
    "string_too_short": "Give at least {min_length} character.",
    "string_type": "Give a text; numbers and dates need quotes.",
    "too_long": "Give at most {max_length}.",
    "too_short": "Give at least {min_length}.",
    "tuple_type": "Give a list.",
}
_ANY_REMEDY = "Correct this field."


def problems_of(error: ValidationError, root: type[BaseModel] = JobSpec) -> list[Problem]:
    """Return pydantic's findings as problems with a remedy each.

    Args:
        error: The findings.
        root: The model that was validated.
    """
    return [_problem(detail, root) for detail in error.errors(include_url=False)]


def shown(value: Any, limit: int = 80) -> str:
    """Return a value as a message shows it, at most `limit` characters long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of nested lists
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _problem(detail: Any, root: type[BaseModel]) -> Problem:
    location: tuple[int | str, ...] = detail["loc"]
    field, value, kind = _field(location), shown(detail["input"]), detail["type"]
    if kind == "extra_forbidden":
        known = _known_fields(location, root)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"Did you mean `{close[0]}`?" if close else f"Known here: {', '.join(known)}."
        return Problem(field, value, "there is no such field.", hint)
    if kind == "missing":
        return Problem(field, "(nothing)", "this field is required.", f"Add `{location[-1]}`.")
    if location[:1] == ("labels",) and kind in ("string_pattern_mismatch", "string_too_long"):
        longest = 63 if location[-1] == "[key]" else 200
        allowed = "`._/-`" if location[-1] == "[key]" else "spaces and `._/-:@+=`"
        rule = f"it holds letters, digits and {allowed}, at most {longest} of them."
        return Problem(f"labels.{location[1]}"[:100], value, rule, "Choose other words.")
    if kind == "string_pattern_mismatch":  # callables are the only other fields with a pattern
        rule = "it must name a function as `package.module:function`."
        return Problem(field, value, rule, "Write it like `my_package.my_module:build`.")
    if kind == "value_error":
        error = detail["ctx"]["error"]
        if not isinstance(error, RuleError):  # some other code's, which knows no remedy
            return Problem(field, value, f"{str(error).removesuffix('.')}.", _ANY_REMEDY)
        where = _mentioned_field(field, error.rule)
        return Problem(where, _value_at(detail["input"], where, field), error.rule, error.remedy)
    if kind == "model_type":  # pydantic's sentence names our class, which no reader knows
        return Problem(field, value, "this is a mapping of fields.", "Give a mapping.")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    remedy = _REMEDIES.get(kind, _ANY_REMEDY).format_map(detail.get("ctx", {}))
    return Problem(field, value, f"{message}.", remedy)


def _field(location: tuple[int | str, ...]) -> str:
    """Dotted path of a location, without pydantic's tags of the forms that share a field."""
    is_tagged = location[:2] in (*_TAGGED_MODELS, _TAGGED_NUMBER)
    names = [str(part) for place, part in enumerate(location) if not (is_tagged and place == 1)]
    return ".".join(names) or "(job)"


def _mentioned_field(field: str, rule: str) -> str:
    """A rule over several fields is reported at the one that its sentence names first."""
    first = rule.split(" ", 1)[0]
    is_field = any(
        first.split(".")[-1] in model.model_fields
        for model in vars(job_module).values()
        if isinstance(model, type) and issubclass(model, BaseModel)
    )
    if not is_field:
        return field
    return first if field == "(job)" else f"{field}.{first}"


def _value_at(value: Any, where: str, base: str) -> str:
    inner = where.removeprefix(base).strip(".")
    for name in inner.split(".") if inner else ():
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, BaseModel) and hasattr(value, name):
            value = getattr(value, name)
        else:
            return "(default)"
    return shown(value)


def _known_fields(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Names of the fields that the model at `location` has."""
    if tagged := _TAGGED_MODELS.get(location[:2]):
        return sorted(tagged.model_fields)
    model = root
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return sorted(model.model_fields)
