"""Whatever is sent to any path of the OpenAPI document is answered as the document says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fakes import FakeCluster, specification
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from running import Service, eventually, run_service
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.settings import Settings
from service.store import Store

# That all which the schema allows is taken is not among them: jobs have rules over several fields.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# A stream of a living job would not end.
NUM_OPERATIONS = 23
STREAMS = ("/api/v1/jobs/{job_id}/events", "/api/v1/jobs/{job_id}/logs")

FEW = hypothesis_settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# What differs from role to role is seen with every valid request.
FEWER = hypothesis_settings(FEW, max_examples=4)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzzed")
    settings = Settings(data_directory=folder, hold_s=0.0, poll_timeout_s=0.5)
    with run_service(settings, FakeCluster()) as service:
        yield service


def narrow_to_jobs_that_can_be(raw: dict[str, Any], folder: Path) -> None:
    """Have most of what the document allows as a specification be one that is taken.

    A specification has rules over several fields, and files that must be there, of which a schema
    knows nothing: almost everything drawn from it is refused, and what comes after the refusal
    would never be tried.
    """
    text = folder / "text.txt"
    text.write_text("Something to read. " * 100)
    schemas, plain = raw["components"]["schemas"], specification()
    # Copies: answers are held to the document as it is.
    file_data, spec = deepcopy(schemas["FileData"]), deepcopy(schemas["JobSpec"])
    file_data["properties"]["kind"] = {"enum": ["text"]}
    file_data["properties"]["paths"]["items"] = {"enum": [str(text)]}
    own_data = {"$ref": "#/components/schemas/CallableData"}
    spec["properties"]["data"] = {"oneOf": [file_data, own_data]}
    for name in ("model", "training", "partition_size", "groups"):
        spec["properties"][name] = {"enum": [plain[name]]}
    # Each of these has rules between its own fields, which are tried in `tests/spec`.
    for name in ("resources", "engine", "checkpoint", "tokenizer"):
        del spec["properties"][name]
    for path in ("/api/v1/jobs", "/api/v1/jobs/validate"):
        for content in raw["paths"][path]["post"]["requestBody"]["content"].values():
            content["schema"] = {"anyOf": [spec, {"$ref": "#/components/schemas/JobSpec"}]}


@pytest.fixture(scope="module")
def document(fuzzed: Service) -> Any:
    """The document, in which the ids of a living and an ended job are known."""
    ended, living = fuzzed.submit(labels={"team": "a"}), fuzzed.submit()
    fuzzed.cluster.start_supervisor(ended).finish()
    fuzzed.cluster.start_supervisor(living).train(3)
    fuzzed.wait_for(ended, state="finished")
    fuzzed.wait_for(living, step=3)
    raw = fuzzed.client.get("/openapi.json").json()
    narrow_to_jobs_that_can_be(raw, fuzzed.settings.data_directory)
    for path, operations in raw["paths"].items():
        known = [ended] if path in STREAMS else [ended, living]
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "job_id":
                    parameter["schema"] = {"type": "string", "enum": [*known, "nobody"]}
    return schemathesis.openapi.from_dict(raw)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_document_allows(
    document: Any, fuzzed: Service, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    base_url = str(fuzzed.client.base_url)
    num_operations = 0
    statuses: dict[str, set[int]] = defaultdict(set)
    for found in document.get_all_operations():
        operation = found.ok()
        num_operations += 1
        raw = operation.definition.raw
        if mode is GenerationMode.NEGATIVE and not raw.keys() & {"parameters", "requestBody"}:
            continue  # nothing can be wrong about it

        @FEW
        @given(case=operation.as_strategy(generation_mode=mode))
        def is_answered_as_documented(case: Any) -> None:
            answer = case.call_and_validate(base_url=base_url, checks=CHECKS)
            statuses[case.operation.label].add(answer.status_code)

        with subtests.test(operation.label):
            is_answered_as_documented()
    assert num_operations == NUM_OPERATIONS
    if mode is GenerationMode.POSITIVE:
        assert 201 in statuses["POST /api/v1/jobs"], "no specification was taken"
        assert 200 in statuses["POST /api/v1/jobs/validate"]


@pytest.mark.parametrize("path", STREAMS)
def test_the_stream_of_a_living_job_is_one_that_the_document_allows(
    document: Any, fuzzed: Service, path: str
) -> None:
    (living,) = [
        job_id for job_id, job in fuzzed.cluster.supervisors.items() if not job.state.is_final
    ]
    operation = next(
        found.ok() for found in document.get_all_operations() if found.ok().path == path
    )
    documented = operation.definition.raw["responses"]
    statuses = set()

    @FEW
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def is_answered_as_documented(case: Any) -> None:
        with fuzzed.client.stream(
            "GET", path.format(job_id=living), params=dict(case.query), headers=dict(case.headers)
        ) as answer:
            statuses.add(answer.status_code)
            content = documented[str(answer.status_code)].get("content", {})
            assert answer.headers["content-type"].partition(";")[0] in content

    is_answered_as_documented()
    assert 200 in statuses or path.endswith("/logs"), "this cluster has no logs"


@pytest.fixture(scope="module")
def tokens(fuzzed: Service) -> dict[str, str]:
    """A token of each role; from the first one on the service asks for them."""
    store = Store(fuzzed.settings.database)
    made = {role.value: TokenStore(store.database).create(role.value, role) for role in Role}
    store.close()
    # The service looks for a first token a few times a second.
    eventually(lambda: fuzzed.client.get("/api/v1/jobs").status_code == 401, "the first refusal")
    return made


@pytest.mark.parametrize("role", ["nobody", "viewer", "user", "admin"])
def test_every_role_is_answered_as_the_document_says(
    document: Any, fuzzed: Service, tokens: dict[str, str], subtests: pytest.Subtests, role: str
) -> None:
    base_url = str(fuzzed.client.base_url)
    headers = {} if role == "nobody" else {"authorization": f"Bearer {tokens[role]}"}
    met: dict[int, set[str]] = defaultdict(set)
    for found in document.get_all_operations():
        operation = found.ok()

        @FEWER
        @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        def is_answered_as_documented(case: Any) -> None:
            answer = case.call_and_validate(base_url=base_url, headers=headers, checks=CHECKS)
            met[answer.status_code].add(case.operation.label)

        with subtests.test(operation.label):
            is_answered_as_documented()
    # A login with what is no token is refused to everybody.
    assert ("GET /api/v1/jobs" in met[401]) is (role == "nobody")
    assert met[401] - {"POST /api/v1/session"} == set() or role == "nobody"
    assert bool(met[403]) is (role in ("viewer", "user"))
    assert "GET /healthz" in met[200]
