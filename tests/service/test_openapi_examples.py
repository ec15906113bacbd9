"""Every operation of the OpenAPI document has examples, and each is one that its schema allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter
from running import openapi_document

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobEvent
from service.listing import Position

DOCUMENT = openapi_document()
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


@dataclass(frozen=True)
class Place:
    """One thing that needs an example: a parameter, a body, an answer."""

    name: str
    schema: Any
    examples: list[Any]


def examples_of(media: dict[str, Any]) -> list[Any]:
    """The examples beside a schema or inside it, also of a form that it names."""
    schema = media["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    inside = DOCUMENT["components"]["schemas"].get(name, schema).get("examples", [])
    return [media["example"]] if "example" in media else inside


def places() -> Iterator[Place]:
    for method, path, operation in OPERATIONS:
        whose = f"{method.upper()} {path}"
        for parameter in operation.get("parameters", ()):
            schema = parameter["schema"]
            yield Place(f"{whose} {parameter['name']}", schema, examples_of(parameter))
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            examples = examples_of(media)
            if kind == "application/yaml":
                examples = [yaml.safe_load(text) for text in examples]
            yield Place(f"{whose} {kind}", media["schema"], examples)
        for status, answer in operation["responses"].items():
            for media in answer.get("content", {}).values():
                yield Place(f"{whose} {status}", media["schema"], examples_of(media))


PLACES = list(places())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_every_parameter_body_and_answer_has_examples_that_its_schema_allows(place: Place) -> None:
    assert place.examples, "there is no example"
    rules = place.schema | {"components": DOCUMENT["components"]}
    for example in place.examples:
        Draft202012Validator(rules).validate(example)


def test_no_operation_is_without_an_answer_that_has_an_example() -> None:
    assert len(OPERATIONS) == 23
    for method, path, operation in OPERATIONS:
        good = [status for status in operation["responses"] if status.startswith("2")]
        assert good, f"{method} {path}"
        shown = any(operation["responses"][status].get("content") for status in good)
        assert shown or good == ["204"], f"{method} {path} shows no answer"


def test_the_examples_are_of_one_job_and_as_the_service_reads_them() -> None:
    bodies = DOCUMENT["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]
    as_json = parse_job_spec(bodies["application/json"]["example"])
    assert as_json == parse_job_spec(yaml.safe_load(bodies["application/yaml"]["example"]))
    answered = DOCUMENT["paths"]["/api/v1/jobs/{job_id}"]["get"]["responses"]["200"]
    detail = answered["content"]["application/json"]["example"]
    assert parse_job_spec(detail["spec"]) == as_json
    (cursor,) = (
        parameter["schema"]["examples"][0]
        for parameter in DOCUMENT["paths"]["/api/v1/jobs"]["get"]["parameters"]
        if parameter["name"] == "cursor"
    )
    assert Position.from_cursor(cursor).job_id == detail["job_id"]


def test_the_example_of_the_stream_is_read_as_events_are() -> None:
    answers = DOCUMENT["paths"]["/api/v1/jobs/{job_id}/events"]["get"]["responses"]
    text = answers["200"]["content"]["text/event-stream"]["example"]
    for message in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in message.splitlines())
        event: JobEvent = TypeAdapter(JobEvent).validate_python(json.loads(fields["data"]))
        assert (event.kind, str(event.sequence)) == (fields["event"], fields["id"])
