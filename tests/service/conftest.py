"""Fixtures: a service on a real port, with a fake cluster behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import FakeCluster
from running import Service, run_service

from service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_directory=tmp_path,
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
