"""What is said of a wrong request: the value, the rule, and what would be right, word by word."""

from __future__ import annotations

import pytest
from running import Service

JSON = {"content-type": "application/json"}
YAML = {"content-type": "application/yaml"}
STATES = "'pending', 'running', 'waiting', 'paused', 'finished', 'cancelled' or 'failed'"
IN_64_BITS = "Choose one from -9223372036854775808 to 9223372036854775807."
SCALE, SESSION = "/api/v1/jobs/nobody/scale", "/api/v1/session"
JOBS, PLANS = "/api/v1/jobs", "/api/v1/plans"


@pytest.fixture
def service_database() -> None:
    """No database of its own: what is asked here never comes so far."""


@pytest.mark.parametrize(
    ("query", "value", "rule", "remedy"),
    [
        ("?limit=0", "'0'", "input should be greater than or equal to 1.", "Give 1 or more."),
        (
            "?limit=10001",
            "'10001'",
            "input should be less than or equal to 10000.",
            "Give 10000 or less.",
        ),
        ("?state=asleep", "'asleep'", f"input should be {STATES}.", f"Give {STATES}."),
        (
            "/x/logs?follow=2",
            "'2'",
            "input should be a valid boolean, unable to interpret input.",
            "Give true or false.",
        ),
        (
            f"/x/logs?worker={'0' * 31}",
            f"'{'0' * 31}'",
            "string should have at most 30 characters.",
            "Give at most 30 characters.",
        ),
        (
            "?label=team",
            "'team'",
            r"string should match pattern '^[A-Za-z0-9._/-]+:[^\x00]*$'.",
            r"Give text of the form ^[A-Za-z0-9._/-]+:[^\x00]*$.",
        ),
    ],
)
def test_of_a_query_the_bound_or_the_choice_is_named(
    service: Service, query: str, value: str, rule: str, remedy: str
) -> None:
    error = service.client.get(f"{JOBS}{query}").json()["error"]
    (problem,) = error["problems"]
    assert (problem["value"], problem["rule"], problem["remedy"]) == (value, rule, remedy)
    assert error["remedy"] == remedy


@pytest.mark.parametrize(
    ("path", "body", "field", "value", "rule", "remedy"),
    [
        (
            SCALE,
            b'{"groups": 0}',
            "groups",
            "0",
            "input should be greater than or equal to 1.",
            "Give 1 or more.",
        ),
        (
            SCALE,
            b'{"groups": 2147483648}',
            "groups",
            "2147483648",
            "input should be less than 2147483648.",
            "Give less than 2147483648.",
        ),
        (
            SCALE,
            b"{}",
            "body",
            "{}",
            "give `groups`, `minimum` or `maximum`.",
            "Give `groups`, `minimum` or `maximum`.",
        ),
        (
            SCALE,
            b'{"groups": 1,}',
            "(body)",
            "the request",
            "it is no valid JSON at character 13 (Expecting property name enclosed in double"
            " quotes).",
            "Send JSON in UTF-8, such as the examples in /docs.",
        ),
        (SESSION, b"{}", "token", "nothing", "field required.", "Add it."),
        (
            JOBS,
            b'{"partition_size": 9223372036854775808}',
            "partition_size",
            "9223372036854775808",
            "it exceeds 64 bits.",
            IN_64_BITS,
        ),
        (
            JOBS,
            b'{"a": ' + b"[" * 33 + b"]" * 33 + b"}",
            "a" + ".0" * 32,
            "a list on level 33",
            "values are nested at most 32 levels deep.",
            "Use fewer levels.",
        ),
        (
            JOBS,
            b"[" * 100_000,
            "(body)",
            "the request",
            "it is nested deeper than 32 levels.",
            "Send one job specification as plain JSON or YAML.",
        ),
        (
            PLANS,
            b'{"job": {}, "clutser": ["p4d"]}',
            "clutser",
            "['p4d']",
            "there is no such field.",
            "Known here: job, cluster, nodes.",
        ),
    ],
)
def test_of_a_body_the_value_the_rule_and_what_would_be_right_are_named(
    service: Service, path: str, body: bytes, field: str, value: str, rule: str, remedy: str
) -> None:
    error = service.client.post(path, content=body, headers=JSON).json()["error"]
    problem = error["problems"][0]
    found = (problem["field"], problem["value"], problem["rule"], problem["remedy"])
    assert found == (field, value, rule, remedy)
    assert (error["field"], error["remedy"]) == (field, remedy)


def test_a_number_of_which_python_cannot_write_the_digits_is_shown_in_part(
    service: Service,
) -> None:
    body = b"steps: 0x" + b"f" * 9000
    error = service.client.post(JOBS, content=body, headers=YAML).json()["error"]
    (problem,) = error["problems"]
    assert problem["value"] == "0x" + "f" * 77 + "…"
    assert problem["remedy"] == IN_64_BITS


def test_a_path_or_a_method_that_is_not_there_is_named_with_the_rule(service: Service) -> None:
    error = service.client.get("/nowhere").json()["error"]
    assert error["message"] == "GET /nowhere: there is no such path."
    assert error["remedy"] == "The paths are listed in /docs."
    error = service.client.delete(JOBS).json()["error"]
    assert error["message"] == f"DELETE {JOBS}: this path has no such method."
    assert error["remedy"] == "The methods of each path are listed in /docs."
