"""The OpenAPI document: what FastAPI knows of the routes, with the specification and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mics_core.spec.job import JobSpec
from service.answers import answer_examples, error_examples
from service.auth.authenticator import COOKIE
from service.errors import ERROR_ANSWERS
from service.guards import BODY_S, MAXIMUM_BODY_BYTES
from service.schemas import PlanRequest

__all__ = ["DESCRIPTION", "TAGS", "document"]

DESCRIPTION = """\
Starts, watches, scales and stops training jobs that run on a Ray cluster.

Jobs sent here and jobs sent by `ray job submit` are the same thing and appear in the same list.
Every error has one form: a stable code, a sentence with the value and the rule, and the remedy.
"""

TAGS = [
    {"name": "jobs", "description": "Submit jobs and look at them."},
    {"name": "control", "description": "Scale, pause, resume and stop jobs."},
    {"name": "progress", "description": "How far jobs are, how fast, and where."},
    {"name": "plans", "description": "Predict layouts; nothing is started."},
    {"name": "events", "description": "What happens in a job, as it happens."},
    {"name": "logs", "description": "What the processes of a job write."},
    {"name": "cluster", "description": "The nodes and what runs on them."},
    {"name": "session", "description": "Log in and out; who am I."},
    {"name": "health", "description": "The service itself."},
]


_REFUSALS_OF_BODIES = {
    "408": f"The body did not go on for {BODY_S:g} s.",
    "413": f"The body is larger than {MAXIMUM_BODY_BYTES // 1024} KiB.",
}


def document(app: FastAPI) -> None:
    """Have `app` give its OpenAPI document with the forms and examples that FastAPI does not know.

    The routes read specifications themselves, from two formats. The schema that answers use lists
    defaults as required; what may be sent is another one.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            for body in (JobSpec, PlanRequest):
                own = body.model_json_schema(ref_template="#/components/schemas/{model}")
                for name, definition in own.pop("$defs", {}).items():
                    schemas.setdefault(name, definition)
                schemas.setdefault(body.__name__, own)
            _use_the_one_error_form(schema)
            _add_refusals_of_bodies(schema)
            _add_examples(schema)
            schema["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            }
            # The empty one: a service of this machine alone that has no tokens.
            schema["security"] = [{"token": []}, {"session": []}, {}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _use_the_one_error_form(schema: dict[str, Any]) -> None:
    """Put the service's form of errors where FastAPI documents one of its own."""
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    for operations in schema["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {}).get("application/json", {})
                if content.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                    content["schema"] = {"$ref": "#/components/schemas/ErrorBody"}
                    answer["description"] = ERROR_ANSWERS[422]["description"]


def _add_refusals_of_bodies(schema: dict[str, Any]) -> None:
    """Say of every route that reads a body what `service.guards` answers to one."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            if "requestBody" in operation:
                for status, description in _REFUSALS_OF_BODIES.items():
                    content = {"schema": {"$ref": "#/components/schemas/ErrorBody"}}
                    operation["responses"][status] = {
                        "description": description,
                        "content": {"application/json": content},
                    }
                operation["responses"] = dict(sorted(operation["responses"].items()))


def _add_examples(schema: dict[str, Any]) -> None:
    examples, errors = answer_examples(), error_examples()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                for content in answer.get("content", {}).values():
                    if content["schema"].get("$ref", "").endswith("/ErrorBody"):
                        content["example"] = errors[status]
                    elif status.startswith("2"):
                        content["example"] = examples[method, path]
