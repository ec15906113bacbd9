"""Fixtures: a service on a real port with a fake cluster behind it, and the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import browser, page_api, training_job, visit  # noqa: F401 (fixtures of the page)
from fakes import FakeCluster
from postgres import DATABASES, MissingServerError, PostgresServer, database_of, run_postgres
from running import Service, run_service

from service.settings import Settings


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    try:
        running = run_postgres()
        server = running.__enter__()
    except MissingServerError as missing:
        pytest.skip(str(missing))
    yield server
    running.__exit__(None, None, None)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'deeper' / 'jobs.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=DATABASES)
def service_database(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The URL of the service's database: every test of a service runs on both kinds.

    A module whose requests never reach the database has a fixture of this name that gives none.
    """
    return database_of(request, tmp_path)


@pytest.fixture
def settings(tmp_path: Path, service_database: str | None) -> Settings:
    return Settings(
        data_directory=tmp_path,
        database_url=service_database,
        discovery_interval_s=0.05,
        poll_timeout_s=0.5,
        poll_pause_s=0.01,
        lost_after_s=0.2,
        start_patience_s=0.5,
        hold_s=0.3,
        ping_interval_s=0.2,
    )


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def service(settings: Settings, cluster: FakeCluster) -> Iterator[Service]:
    with run_service(settings, cluster) as running:
        yield running
