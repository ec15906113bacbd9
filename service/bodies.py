"""Reads a job specification from the body of a request, as JSON or as YAML.

Both formats can say more than a specification may: numbers beyond 64 bits, infinities, text that is
no text, a few lines of YAML that unfold into gigabytes. All of that is refused here, with the
field, so that nothing behind has to expect it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import yaml
from starlette.requests import Request

from mics_core.errors import Problem, SpecificationError
from service.errors import RequestError

__all__ = ["parse_body", "read_specification_body"]

_JSON = ("application/json",)
_YAML = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")

_MAXIMUM_DEPTH = 32


async def read_specification_body(request: Request) -> Any:
    """Return the body of `request` as plain values.

    Raises:
        RequestError: Its media type is neither JSON nor YAML, or it is too large.
        SpecificationError: It is neither, whatever it says it is, or holds forbidden values.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Refusing anything else also keeps foreign web pages out: see `service.guards`.
    if media_type not in _JSON + _YAML:
        raise RequestError(
            415,
            f"Content type {media_type[:100]!r} is neither JSON nor YAML.",
            remedy="Send `Content-Type: application/json` or `application/yaml`.",
        )
    return parse_body(await request.body(), is_yaml=media_type in _YAML)


def parse_body(body: bytes, *, is_yaml: bool) -> Any:
    """Parse `body` and refuse values that no specification can hold.

    Raises:
        SpecificationError: Names the place and the rule.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(f"byte {error.start} is no UTF-8") from None
    try:
        value = _parse_yaml(text) if is_yaml else json.loads(text)
    except RecursionError:
        raise _unreadable(f"it is nested deeper than {_MAXIMUM_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise _unreadable(f"line {error.lineno} is no JSON: {error.msg}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "it"
        raise _unreadable(f"{where} is no YAML: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # Python's limit on the digits of a number
        raise _unreadable(str(error)) from None
    problems = list(_forbidden_values(value, "", depth=0))
    if problems:
        raise SpecificationError(problems)
    return value


def _parse_yaml(text: str) -> Any:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _unreadable(f"it refers to the anchor `{event.anchor}`, which is not allowed")
    return yaml.safe_load(text)


def _unreadable(rule: str) -> SpecificationError:
    return SpecificationError(
        [
            Problem(
                field="(body)",
                value="the request",
                rule=rule[:300] + ".",
                remedy="Send one job specification as plain JSON or YAML.",
            )
        ]
    )


def _forbidden_values(value: Any, field: str, *, depth: int) -> Iterator[Problem]:
    """Yield a problem for each value below `value` that JSON, SQL or a path could not carry."""
    if depth > _MAXIMUM_DEPTH:
        kind = "a list" if isinstance(value, list) else type(value).__name__
        rule = f"values are nested at most {_MAXIMUM_DEPTH} levels deep."
        yield Problem(field, f"{kind} on level {depth}", rule, "Use fewer levels.")
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = str(key)
            if not isinstance(key, str):
                yield Problem(field or "(job)", repr(key)[:80], "keys are text.", "Quote it.")
            yield from _forbidden_values(name, field or "(job)", depth=depth)
            # The place is part of the answer, which half a surrogate pair would make unsendable.
            shown = name.encode(errors="backslashreplace").decode()
            where = f"{field}.{shown}" if field else shown
            yield from _forbidden_values(inner, where, depth=depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _forbidden_values(inner, f"{field}.{index}", depth=depth + 1)
    elif isinstance(value, str):
        if "\0" in value or _has_surrogates(value):
            shown = ascii(value)[:80]
            yield Problem(field, shown, "it holds characters that are no text.", "Remove them.")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            # Python writes no number of thousands of digits, but in hexadecimal.
            shown = str(value) if value.bit_length() <= 256 else hex(value)[:79] + "…"
            remedy = f"Choose one from {-(2**63)} to {2**63 - 1}."
            yield Problem(field, shown, "it exceeds 64 bits.", remedy)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(field, repr(value), "it is no finite number.", "Choose a finite one.")
    elif value is not None:
        kind = type(value).__name__
        yield Problem(field, str(value)[:80], f"a {kind} has no place here.", "Quote it as text.")


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)
