"""One cluster for all end-to-end tests, and the service in a process of its own in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import browser  # noqa: F401 (a fixture)

from mics_core.cluster.local import LocalCluster
from service.client import MicsClient
from tests.cluster.conftest import running_cluster
from tests.e2e.service_process import ServiceProcess

NUM_NODES = 2


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalCluster]:
    with running_cluster(NUM_NODES) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def service(
    cluster: LocalCluster,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ServiceProcess]:
    process = ServiceProcess(cluster, tmp_path_factory.mktemp("service"))
    process.start()
    try:
        yield process
    finally:
        process.stop()
    assert not process.is_answering(), f"somebody still answers at {process.url}"


@pytest.fixture(scope="package")
def client(service: ServiceProcess) -> Iterator[MicsClient]:
    # Patient enough for a service that is killed and started again.
    with MicsClient(service.url, max_retries=60) as client:
        yield client


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("All the world is a stage. " * 200, encoding="utf-8")
    return path
