"""Whatever is sent to any path of the OpenAPI document is answered as the document says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fakes import FakeCluster
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from running import Service, run_service
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.settings import Settings

# That all which the schema allows is taken is not among them: jobs have rules over several fields.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# A stream of a living job would not end.
STREAMS = ("/api/v1/jobs/{job_id}/events", "/api/v1/jobs/{job_id}/logs")

FEW = hypothesis_settings(
    max_examples=10,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("fuzzed")
    settings = Settings(data_directory=folder, hold_s=0.0, poll_timeout_s=0.5)
    with run_service(settings, FakeCluster()) as service:
        yield service


@pytest.fixture(scope="module")
def document(fuzzed: Service) -> Any:
    """The document, in which the ids of a living and an ended job are known."""
    ended, living = fuzzed.submit(labels={"team": "a"}), fuzzed.submit()
    fuzzed.cluster.start_supervisor(ended).finish()
    fuzzed.cluster.start_supervisor(living).train(3)
    fuzzed.wait_for(ended, state="finished")
    fuzzed.wait_for(living, step=3)
    raw = fuzzed.client.get("/openapi.json").json()
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
    for found in document.get_all_operations():
        operation = found.ok()
        num_operations += 1
        raw = operation.definition.raw
        if mode is GenerationMode.NEGATIVE and not raw.keys() & {"parameters", "requestBody"}:
            continue  # nothing can be wrong about it

        @FEW
        @given(case=operation.as_strategy(generation_mode=mode))
        def is_answered_as_documented(case: Any) -> None:
            case.call_and_validate(base_url=base_url, checks=CHECKS)

        with subtests.test(operation.label):
            is_answered_as_documented()
    assert num_operations >= 19
