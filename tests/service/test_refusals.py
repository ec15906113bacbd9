"""Whatever is sent, the answer is a clear 4xx in the one form."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fakes import FakeCluster, specification
from running import Service, openapi_document, run_service
from starlette.exceptions import HTTPException

from mics_core.errors import (
    ClusterError,
    DataError,
    JobConflictError,
    JobNotFoundError,
    MicsError,
)
from service import guards
from service.settings import Settings

JSON = {"content-type": "application/json"}
YAML = {"content-type": "application/yaml"}
PATHS_WITH_BODIES = [
    "/api/v1/jobs",
    "/api/v1/jobs/nobody/scale",
    "/api/v1/jobs/validate",
    "/api/v1/plans",
    "/api/v1/session",
]


@pytest.fixture
def service_database() -> None:
    """No database of its own: what is asked here never comes so far."""


def assert_refused(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert error["code"] == code
    return error


def error_of(answer: httpx.Response) -> dict[str, object]:
    """Return the error of an answer; it says what is wrong and what to do."""
    error = answer.json()["error"]
    for part in (error, *error["problems"]):
        assert part["remedy"].strip(), answer.text
    assert error["code"]
    assert error["message"].strip()
    assert "Traceback" not in answer.text
    return dict(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"name": ' + b"9" * 5000 + b"}",
        b'{"name": 1e999}',
        json.dumps(specification(name="a\0b")).encode(),
        json.dumps(specification(name="\ud800")).encode(),
        json.dumps(specification(name="x" * 101)).encode(),
        json.dumps(specification(partition_size=2**63)).encode(),
        json.dumps(specification(partition_size="many")).encode(),
        json.dumps(specification(data={"kind": "text", "paths": ["../../etc/passwd"]})).encode(),
        json.dumps(specification(data={"kind": "text", "paths": ["/a\0b"]})).encode(),
    ],
)
def test_what_is_no_specification_is_refused(service: Service, body: bytes) -> None:
    answer = service.client.post("/api/v1/jobs", content=body, headers=JSON)
    assert_refused(answer, 422, "invalid_specification")


@pytest.mark.parametrize(
    "body",
    [
        b"name: [",
        b"name: .inf",
        b"name: 2026-01-01",
        b"1: 2",
        b"a: &x [1]\nb: *x",
        b"!!python/object/apply:os.getcwd []",
        b"\x00",
    ],
)
def test_what_is_no_yaml_specification_is_refused(service: Service, body: bytes) -> None:
    answer = service.client.post("/api/v1/jobs", content=body, headers=YAML)
    assert_refused(answer, 422, "invalid_specification")


def test_another_media_type_is_refused(service: Service) -> None:
    for media_type in ("text/plain", "multipart/form-data", ""):
        answer = service.client.post(
            "/api/v1/jobs", content=b"{}", headers={"content-type": media_type}
        )
        error = assert_refused(answer, 415, "unsupported_media_type")
        assert "application/json" in str(error["remedy"])


def test_a_large_body_is_refused_whether_announced_or_not(service: Service) -> None:
    large = b" " * 300_000
    for path in PATHS_WITH_BODIES:
        announced = service.client.post(path, content=large, headers=JSON)
        assert_refused(announced, 413, "body_too_large")
        chunked = service.client.post(path, content=iter([large[:200_000]] * 2), headers=JSON)
        error = assert_refused(chunked, 413, "body_too_large")
        assert error["message"] == "The body exceeds 262144 bytes."
        assert chunked.headers["x-content-type-options"] == "nosniff"


def test_a_body_that_does_not_go_on_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "BODY_S", 0.2)
    address = service.client.base_url
    for path in PATHS_WITH_BODIES:
        with socket.create_connection((address.host, address.port), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head.encode() + b"Content-Length: 100\r\n\r\n{")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408, path
            error = json.loads(answer.read())["error"]
            assert (error["code"], error["message"]) == (
                "request_too_slow",
                "The body did not go on for 0.2 s.",
            )
            assert error["remedy"]


def test_every_route_with_a_body_documents_how_bodies_are_refused() -> None:
    with_bodies = [
        path.format(job_id="nobody")
        for path, operations in openapi_document()["paths"].items()
        for operation in operations.values()
        if "requestBody" in operation and operation["responses"].keys() >= {"408", "413", "422"}
    ]
    assert sorted(with_bodies) == sorted(PATHS_WITH_BODIES)


def test_a_scale_body_that_is_no_json_is_refused(service: Service) -> None:
    path = f"/api/v1/jobs/{service.submit()}/scale"
    for body in (b"{", b"nonsense", b"", b"[]", b"\xff\xfe", b'{"groups": 1, "extra": 2}', b"{}"):
        answer = service.client.post(path, content=body, headers=JSON)
        assert_refused(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/jobs?limit=0", 422, "invalid_request"),
        ("/api/v1/jobs?limit=many", 422, "invalid_request"),
        ("/api/v1/jobs?state=sleeping", 422, "invalid_request"),
        ("/api/v1/jobs/x/events?after=-1", 422, "invalid_request"),
        ("/api/v1/jobs/x/events?after=" + "9" * 40, 422, "invalid_request"),
        ("/api/v1/jobs/x/throughput?points=-3", 422, "invalid_request"),
        ("/api/v1/jobs/..%2f..%2fetc", 404, "not_found"),
        ("/api/v1/jobs/%00", 404, "job_not_found"),
        ("/static/../settings.py", 404, "not_found"),
        ("/static/%2e%2e/settings.py", 404, "not_found"),
        ("/static/..%2f..%2fpyproject.toml", 404, "not_found"),
        ("/nowhere", 404, "not_found"),
    ],
)
def test_a_strange_path_or_query_is_refused(
    service: Service, path: str, status: int, code: str
) -> None:
    assert_refused(service.client.get(path), status, code)


def test_a_wrong_method_is_named(service: Service) -> None:
    answer = service.client.delete("/api/v1/jobs")
    error = assert_refused(answer, 405, "method_not_allowed")
    assert "DELETE" in str(error["message"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/v1/jobs", {"GET", "POST"}),
        ("PUT", "/api/v1/jobs/nobody", {"GET", "DELETE"}),
        ("PUT", "/api/v1/session", {"GET", "POST", "DELETE"}),
        ("DELETE", "/api/v1/jobs/nobody/scale", {"POST"}),
        ("PUT", "/", {"GET"}),
        ("POST", "/static/js/main.js", {"GET", "HEAD"}),
    ],
)
def test_the_answer_to_a_wrong_method_names_all_that_the_path_has(
    service: Service, method: str, path: str, allowed: set[str]
) -> None:
    answer = service.client.request(method, path)
    assert_refused(answer, 405, "method_not_allowed")
    assert {*answer.headers["allow"].split(", ")} == allowed


def test_a_foreign_host_name_is_refused(service: Service) -> None:
    answer = service.client.get("/api/v1/jobs", headers={"host": "evil.example"})
    assert_refused(answer, 400, "bad_request")


def test_a_foreign_page_cannot_change_anything(service: Service) -> None:
    headers = {"origin": "https://evil.example"}
    answer = service.client.post("/api/v1/jobs", json=specification(), headers=headers)
    assert_refused(answer, 403, "forbidden")
    own = {"origin": str(service.client.base_url).rstrip("/")}
    assert service.client.post("/api/v1/jobs", json=specification(), headers=own).is_success


def test_an_unexpected_failure_shows_no_stack_trace(service: Service) -> None:
    async def broken(_job_id: str, _change: object) -> None:
        raise RuntimeError("secret detail")

    service.cluster.scale = broken  # type: ignore[method-assign,assignment]
    answer = service.client.post(f"/api/v1/jobs/{service.submit()}/scale", json={"groups": 2})
    assert_refused(answer, 500, "internal_error")
    assert "secret" not in answer.text


OPERATIONS = [
    (method.upper(), path)
    for path, operations in openapi_document()["paths"].items()
    for method in operations
]
WAYS: dict[str, dict[str, Any]] = {
    "nothing is given": {},
    "the body is no JSON": {"content": b"{", "headers": JSON},
    "the body is of another kind": {"content": b"x", "headers": {"content-type": "text/plain"}},
    "the body has unknown fields": {"json": {"nonsense": 1}},
    "the query is nonsense": {
        "params": dict.fromkeys(("state", "limit", "cursor", "after", "points", "tail"), "\x00")
    },
    "the host is foreign": {"headers": {"host": "evil.example"}},
}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(data_directory=tmp_path_factory.mktemp("refusing"), hold_s=0.0)
    with run_service(settings, FakeCluster()) as service:
        yield service


@pytest.mark.parametrize("is_reachable", [True, False])
def test_every_error_of_every_route_has_a_remedy(refusing: Service, is_reachable: bool) -> None:
    refusing.cluster.is_reachable = is_reachable
    for method, path in [*OPERATIONS, ("TRACE", "/api/v1/jobs"), ("GET", "/api/v1/nothing")]:
        for way, asked in WAYS.items():
            answer = refusing.client.request(method, path.format(job_id="nobody"), **asked)
            # Readiness has a form of its own, which says what does not answer.
            if answer.is_error and (path != "/readyz" or answer.status_code != 503):
                assert error_of(answer), f"{method} {path}, where {way}"
        assert answer.status_code == 400, f"{method} {path}, where {way}"


def test_an_error_that_names_no_remedy_gets_that_of_its_status(
    refusing: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Exception] = []

    async def fail() -> None:
        raise raised[-1]

    monkeypatch.setattr(refusing.cluster, "cluster", fail)
    for error in (
        MicsError("It is broken."),
        DataError("It is empty."),
        JobNotFoundError("It is gone."),
        JobConflictError("It has ended."),
        ClusterError("It is away."),
        *(HTTPException(status) for status in range(400, 512)),
    ):
        raised.append(error)
        assert error_of(refusing.client.get("/api/v1/cluster"))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_pages_are_served_with_a_strict_policy(service: Service, path: str) -> None:
    answer = service.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "//" not in policy + answer.text, "another host"
    assert answer.headers["x-content-type-options"] == "nosniff"
