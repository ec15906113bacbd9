"""What others say in their errors names no place of this machine, and still says what it should."""

from __future__ import annotations

import pytest

from service.redaction import without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open /srv/hidden/app.py.", "cannot open …/app.py."),
        ("file:///srv/hidden/app.py is gone", "file:…/app.py is gone"),
        ("open:/srv/hidden/app.py:12", "open:…/app.py:12"),
        ("host:/srv/hidden", "host:…/hidden"),
        ("unix:///tmp/ray/sock", "unix:…/sock"),
        ("see /etc, or /etc.", "see …, or …."),
        ("'/srv/hidden dir/secret place/app.py'", "'…/app.py'"),
        ("/srv/hidden dir/secret/app.py failed", "…/app.py failed"),
        ("//srv/hidden/app.py, (~/hidden/b)", "…/app.py, (…/b)"),
        ("path=/srv/a,/srv/b", "path=…/a,…/b"),
        ("/srv/hid%20den/app.py", "…/app.py"),
        ("/docs/hidden/app.py", "…/app.py"),
    ],
)
def test_a_path_is_reduced_to_its_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "GET /api/v1/jobs lists the jobs; '/api/v1/jobs' too.",
        "/docs describes each body, and /readyz, /healthz and /metrics say how it fares.",
        "http://10.0.0.4:8265/api/jobs/x and https://host.example/a/b",
        "ray://head:10001, s3://bucket/key",
        "3 / 4 and and/or 1/2 MiB/s",
    ],
)
def test_addresses_routes_and_lone_slashes_stay(text: str) -> None:
    assert without_paths(text) == text
