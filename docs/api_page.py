"""Writes `docs/api.md` from the service's OpenAPI document, for `docs/generate.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from service.app import build_app
from service.gateway import ClusterGateway
from service.settings import Settings

__all__ = ["render"]

Document = dict[str, Any]

_INTRODUCTION = """\
<!-- Written by docs/generate.py from the service's OpenAPI document. Change that, then run it. -->

# REST API

What a running service shows at `/docs` and gives as `/openapi.json`. Bodies are JSON; where a job
specification is sent, YAML is taken too. `from service.client import MicsClient` is a client in
Python.

Every error has one form, [ErrorBody](#errorbody): `code` is stable and for programs, `message` has
the value and the rule, `remedy` says what to do, and `problems` lists every broken rule.
"""

_SPECIFICATION = "job-specification.md"
_PLAIN_WORDS = {
    "Successful Response": "Fine.",
}
_METHODS = ("get", "post", "put", "patch", "delete")


def render() -> str:
    """Return the text of the page."""
    document = _openapi()
    parts = [_INTRODUCTION]
    for tag in document["tags"]:
        operations = [
            _operation(document, method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if method in _METHODS and tag["name"] in operation.get("tags", [])
        ]
        if operations:
            title = tag["name"].capitalize()
            parts += [f"## {title}\n", f"{tag['description']}\n", *operations]
    parts.append("## Forms\n")
    parts += [_form(document, name) for name in _forms(document)]
    return "\n".join(parts)


def _openapi() -> Document:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_directory=Path(folder))
        # Nothing is started, so no cluster is asked for.
        app = build_app(settings, cast("ClusterGateway", None))
        document: Document = app.openapi()
        app.state.services.store.close()
    return document


def _operation(document: Document, method: str, path: str, operation: Document) -> str:
    lines = [f"### {method.upper()} {path}", "", f"{operation['summary']}.", ""]
    if description := operation.get("description"):
        lines += [*_paragraphs(description), ""]
    if parameters := operation.get("parameters"):
        lines += [
            "| Parameter | In | Type | Default | Meaning |",
            "| --- | --- | --- | --- | --- |",
        ]
        for parameter in parameters:
            schema = parameter["schema"]
            default = "required" if parameter.get("required") else _default(schema)
            meaning = _cell(parameter.get("description", ""))
            lines.append(
                f"| `{parameter['name']}` | {parameter['in']} | {_words(schema)} | {default} |"
                f" {meaning} |"
            )
        lines.append("")
    if body := operation.get("requestBody"):
        schemas = {_words(content["schema"]) for content in body["content"].values()}
        kinds = ", ".join(f"`{kind}`" for kind in body["content"])
        lines += [f"Body: {' or '.join(sorted(schemas))}, as {kinds}.", ""]
    lines += ["| Answer | Form | Meaning |", "| --- | --- | --- |"]
    for status, answer in sorted(operation["responses"].items()):
        lines.append(f"| {status} | {_answer_form(answer)} | {_cell(_meaning(answer))} |")
    return "\n".join([*lines, ""])


def _meaning(answer: Document) -> str:
    described: str = answer["description"]
    return _PLAIN_WORDS.get(described, described)


def _answer_form(answer: Document) -> str:
    forms = []
    for kind, content in answer.get("content", {}).items():
        schema = content.get("schema", {})
        is_json = kind == "application/json"
        forms.append(_words(schema) if is_json and schema else f"`{kind}`")
    return " or ".join(dict.fromkeys(forms)) or "–"


def _forms(document: Document) -> Iterator[str]:
    """Yield the forms that answers and bodies use; those of a job have a page of their own."""
    schemas = document["components"]["schemas"]
    inside = set(_reached(schemas, "JobSpec"))
    for name in sorted(schemas):
        if name not in inside:
            yield name


def _reached(schemas: Document, name: str) -> Iterator[str]:
    known, waiting = {name}, [name]
    while waiting:
        here = waiting.pop()
        yield here
        fresh = set(_references(schemas[here])) - known
        known |= fresh
        waiting += fresh


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(reference := value.get("$ref"), str):
            yield reference.rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _form(document: Document, name: str) -> str:
    schema = document["components"]["schemas"][name]
    lines = [f"### {name}", ""]
    if description := schema.get("description"):
        lines += [*_paragraphs(description), ""]
    if "enum" in schema:
        return "\n".join([*lines, f"One of {_words(schema)}.", ""])
    lines += ["| Field | Type | Meaning |", "| --- | --- | --- |"]
    for field, inner in schema.get("properties", {}).items():
        lines.append(f"| `{field}` | {_words(inner)} | {_cell(inner.get('description', ''))} |")
    return "\n".join([*lines, ""])


def _words(schema: Document) -> str:
    """Say in few words what a JSON schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = _SPECIFICATION if name == "JobSpec" else f"#{name.lower()}"
        return f"[{name}]({target})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_words(part) for part in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    match schema.get("type"):
        case "array":
            return f"list of {_words(schema.get('items', {}))}"
        case "object":
            values = schema.get("additionalProperties")
            return f"mapping to {_words(values)}" if isinstance(values, dict) else "mapping"
        case "integer":
            return "whole number"
        case "string":
            return "text"
        case "null":
            return "null"
        case None:
            return "anything"
        case other:
            return str(other)


def _default(schema: Document) -> str:
    default = schema.get("default")
    return "–" if default is None or default == [] else f"`{str(default).lower()}`"


def _paragraphs(text: str) -> Iterator[str]:
    for index, paragraph in enumerate(text.strip().split("\n\n")):
        if index:
            yield ""
        yield " ".join(paragraph.split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
