"""Where a log is looked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.job_submission import JobSubmissionClient

from mics_core.cluster import logs
from mics_core.spec.nodes import LogSource


def test_a_supervisor_is_looked_for_on_the_services_own_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def list_actors(**options: Any) -> list[Any]:
        asked.update(options)
        return [SimpleNamespace(node_id="n0", pid=7), SimpleNamespace(node_id=None, pid=0)]

    monkeypatch.setattr(logs, "list_actors", list_actors)
    client = cast(
        "JobSubmissionClient", SimpleNamespace(get_address=lambda: "http://10.0.0.1:8265")
    )
    found = logs.log_files(LogSource(supervisor_of="job"), client)
    assert found == [{"node_id": "n0", "pid": 7, "suffix": "err"}]
    assert asked["address"] == "http://10.0.0.1:8265"
