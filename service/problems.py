"""Says of a query, header or body that breaks a rule what is wrong with it and what would be right.

The rules are pydantic's, which names what was expected beside its sentence; so a remedy can hold
the bound, the choices or the form, and nobody has to look them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.schemas import ErrorProblem

__all__ = ["problem_of"]

_LONGEST_VALUE = 80

_REMEDIES = {
    "greater_than_equal": "Give {ge} or more.",
    "greater_than": "Give more than {gt}.",
    "less_than_equal": "Give {le} or less.",
    "less_than": "Give less than {lt}.",
    "enum": "Give {expected}.",
    "literal_error": "Give {expected}.",
    "int_type": "Give a whole number, without quotes.",
    "int_parsing": "Give a whole number.",
    "int_parsing_size": "Give a smaller number.",
    "int_from_float": "Give a whole number.",
    "bool_parsing": "Give true or false.",
    "string_type": "Give text, in quotes.",
    "string_unicode": "Take out the halves of surrogate pairs.",
    "string_too_short": "Give at least {min_length} characters.",
    "string_too_long": "Give at most {max_length} characters.",
    "string_pattern_mismatch": "Give text of the form {pattern}.",
    "too_short": "Give at least {min_length}.",
    "too_long": "Give at most {max_length}.",
    "missing": "Add it.",
    "extra_forbidden": "Leave it out; /docs lists the fields that are known here.",
    "model_attributes_type": "Send one JSON object, such as those in /docs.",
    "dict_type": "Send one JSON object, such as those in /docs.",
    "json_invalid": "Send JSON in UTF-8, such as the examples in /docs.",
}
"""What would be right, by pydantic's type of an error, with what it expected."""

_ANY_REMEDY = "Correct it as /docs describes it."


def problem_of(detail: Mapping[str, Any]) -> ErrorProblem:
    """Return the problem that stands for one of pydantic's errors.

    Args:
        detail: The error as `ValidationError.errors()` gives it; its place begins with `body`,
            `query`, `path` or `header`.
    """
    kind, expected = detail["type"], detail.get("ctx", {})
    names = [str(part) for part in detail["loc"][1:]] or [str(detail["loc"][0])]
    value = repr(detail.get("input"))
    rule = detail["msg"][0].lower() + detail["msg"][1:]
    remedy = _REMEDIES.get(kind, _ANY_REMEDY).format_map(expected)
    if kind == "json_invalid":
        names, value = ["(body)"], "the request"
        rule = f"it is no valid JSON at character {detail['loc'][-1]} ({expected['error']})"
    elif kind == "missing":
        value = "nothing"  # what is shown as the input is all that was sent beside it
    elif kind == "value_error":  # a rule of our own, which says what to do
        rule = str(expected["error"])
        remedy = f"{rule[0].upper()}{rule[1:]}."
    if len(value) > _LONGEST_VALUE:
        value = value[: _LONGEST_VALUE - 1] + "…"
    return ErrorProblem(field=".".join(names), value=value, rule=f"{rule}.", remedy=remedy)
