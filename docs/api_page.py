"""Writes `docs/api.md` from the service's OpenAPI document, for `docs/generate.py`."""

from __future__ import annotations

import json
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

The examples are of one small job; what `…` stands for is in its form. Where the service has tokens,
each call needs `-H "Authorization: Bearer $MICS_TOKEN"` too.
"""

_SPECIFICATION = "job-specification.md"
_PLAIN_WORDS = {
    "Successful Response": "Fine.",
}
_SERVICE = "http://127.0.0.1:8600"
_MOST_LINES = 48
_LONG = {"spec": {"…": "…"}, "status": {"…": "…"}, "candidates": ["…"]}
_FROM_FILES = {
    "/api/v1/jobs": "job.yaml",
    "/api/v1/jobs/validate": "job.yaml",
    "/api/v1/plans": "plan.yaml",
}
_STREAMS = ("/api/v1/jobs/{job_id}/events", "/api/v1/jobs/{job_id}/logs")
_ASKED = {
    "/api/v1/jobs/{job_id}/throughput": ("points",),
    "/api/v1/jobs/{job_id}/events": ("after",),
    "/api/v1/jobs/{job_id}/events/list": ("kind", "limit"),
    "/api/v1/jobs/{job_id}/logs": ("worker", "follow"),
}
"""Query parameters of the calls that are shown."""

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
            "| Parameter | In | Type | Default | Meaning | Example |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for parameter in parameters:
            schema = parameter["schema"]
            default = "required" if parameter.get("required") else _default(schema)
            meaning = _cell(parameter.get("description", ""))
            lines.append(
                f"| `{parameter['name']}` | {parameter['in']} | {_words(schema)} | {default} |"
                f" {meaning} | {_shown(schema['examples'][0])} |"
            )
        lines.append("")
    if body := operation.get("requestBody"):
        schemas = {_words(content["schema"]) for content in body["content"].values()}
        kinds = ", ".join(f"`{kind}`" for kind in body["content"])
        lines += [f"Body: {' or '.join(sorted(schemas))}, as {kinds}.", ""]
    lines += ["| Answer | Form | Meaning |", "| --- | --- | --- |"]
    for status, answer in sorted(operation["responses"].items()):
        lines.append(f"| {status} | {_answer_form(answer)} | {_cell(_meaning(answer))} |")
    lines += ["", "```sh", _curl(document, method, path, operation), "```", ""]
    return "\n".join([*lines, *([] if _is_known(method, path) else _answered(operation))])


def _is_known(method: str, path: str) -> bool:
    """Whether the answer is a job once more, which the routes before have shown."""
    return method == "post" and path.startswith("/api/v1/jobs/{job_id}/")


def _curl(document: Document, method: str, path: str, operation: Document) -> str:
    """Return a call with the examples of the document."""
    examples = {
        parameter["name"]: parameter["schema"]["examples"][0]
        for parameter in operation.get("parameters", ())
    }
    query = [
        f"{name}={value}"
        for name in _ASKED.get(path, ())
        for value in (examples[name] if isinstance(examples[name], list) else [examples[name]])
    ]
    address = f"{_SERVICE}{path.format_map(examples)}{'?' if query else ''}{'&'.join(query)}"
    # Bodies are sent by POST, by themselves.
    content = operation.get("requestBody", {}).get("content", {})
    words = ["curl", "-sN" if path in _STREAMS else "-s"]
    if method == "delete" or (method == "post" and not content):
        words += ["-X", method.upper()]
    words.append(f"'{address}'" if query else address)
    if content and path in _FROM_FILES:
        words += ["-H 'Content-Type: application/yaml'", "--data-binary", f"@{_FROM_FILES[path]}"]
    elif content:
        body = content["application/json"]
        name = body["schema"].get("$ref", "").rpartition("/")[2]
        example = document["components"]["schemas"][name]["examples"][0]
        words += ["--json", f"'{json.dumps(example)}'"]
    return " ".join(words).replace("True", "true")


def _answered(operation: Document) -> Iterator[str]:
    """Yield the answer of the example, where it is short enough to be read."""
    for status, answer in operation["responses"].items():
        for kind, media in answer.get("content", {}).items():
            if not status.startswith("2"):
                continue
            example = media["example"]
            is_json = kind == "application/json"
            if is_json:
                example = {
                    name: _LONG[name] if value and name in _LONG else value
                    for name, value in example.items()
                }
            text = "\n".join(_json_lines(example)) if is_json else example.rstrip()
            if len(text.splitlines()) <= _MOST_LINES:
                text = text.replace('{"…": "…"}', "{…}").replace('["…"]', "[…]")
                yield from ("```json" if is_json and "…" not in text else "```", text, "```", "")


def _json_lines(value: Any, indent: str = "", before: str = "") -> Iterator[str]:
    """Yield JSON that spends no line on what fits beside its name."""
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, dict | list) or len(indent + before + flat) <= 100:
        yield f"{indent}{before}{flat}"
        return
    is_mapping = isinstance(value, dict)
    yield f"{indent}{before}{'{' if is_mapping else '['}"
    names = [f"{json.dumps(name)}: " for name in value] if is_mapping else [""] * len(value)
    each = list(value.values()) if is_mapping else value
    for index, (name, inner) in enumerate(zip(names, each, strict=True)):
        *first, last = _json_lines(inner, f"{indent}  ", name)
        yield from first
        yield f"{last}," if index + 1 < len(each) else last
    yield f"{indent}{'}' if is_mapping else ']'}"


def _shown(example: Any) -> str:
    values = example if isinstance(example, list) else [example]
    return ", ".join(f"`{str(value).lower() if value is True else value}`" for value in values)


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
