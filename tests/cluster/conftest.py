"""One Ray cluster for these tests, with as many nodes as each module asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from mics_core.cluster.drains import draining_nodes
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.names import NAMESPACE
from mics_core.spec import JobSpec
from tests.cluster.control import Control
from tests.cluster.head import Head, head_in_place
from tests.cluster.jobs import recorded_job
from tests.cluster.leftovers import Leftovers, check_that_jobs_left_nothing
from tests.cluster.running import RunningJob, eventually

WORKERS_PER_NODE = 2
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def running_cluster(num_nodes: int, leftovers: Leftovers | None = None) -> Iterator[LocalCluster]:
    """A head and nodes of two workers, this process connected to it.

    At its end, nothing that it started may be left, nor of what `leftovers` has seen, and before
    that nothing of any job.
    """
    leftovers = leftovers or Leftovers()
    with pytest.MonkeyPatch.context() as environment:
        # The workers import the users' code of these tests as any code on their path.
        path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment.setenv("PYTHONPATH", os.pathsep.join(path))
        environment.delenv("RAY_ADDRESS", raising=False)
        # A run goes on at once where a node is gone; with this Ray's head learns of it soon too.
        environment.setenv("RAY_health_check_period_ms", "1000")
        environment.setenv("RAY_health_check_failure_threshold", "3")
        with LocalCluster(num_nodes, WORKERS_PER_NODE) as cluster:
            ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
            try:
                yield cluster
                check_that_jobs_left_nothing()
            finally:
                leftovers.look(cluster.address, cluster.dashboard_url)
                ray.shutdown()
    leftovers.check()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Head:
    """Stands for Ray's head."""
    return head_in_place(monkeypatch)


@pytest.fixture(scope="package")
def leftovers() -> Leftovers:
    """What the cluster and its jobs must not leave behind."""
    return Leftovers()


@pytest.fixture(scope="package")
def shared_cluster(leftovers: Leftovers) -> Iterator[LocalCluster]:
    """A cluster for all modules: nodes that have started workers before start others sooner."""
    with running_cluster(1, leftovers) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """A cluster with the `NUM_NODES` of the module, on which nobody's jobs are left."""
    wanted: int = request.module.NUM_NODES
    for drained in set(draining_nodes()) & set(shared_cluster.node_ids):
        shared_cluster.kill_node(drained)  # it is there, and takes no worker any more
    while len(shared_cluster.node_ids) > wanted:
        shared_cluster.kill_node(shared_cluster.node_ids[-1])
    while len(shared_cluster.node_ids) < wanted:
        shared_cluster.add_node()
    slots = wanted * WORKERS_PER_NODE
    eventually(lambda: ray.cluster_resources().get("CPU") == slots, f"{slots} slots", 60.0)
    yield shared_cluster
    check_that_jobs_left_nothing()


StartJob = Callable[..., RunningJob]


@pytest.fixture(scope="module")
def start_job(
    cluster: LocalCluster, leftovers: Leftovers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartJob]:
    """Starts `recorded_job`s; those that still run at the module's end are ended."""
    with ExitStack() as running:

        def start(steps: int, **changes: Any) -> RunningJob:
            folder = tmp_path_factory.mktemp("job")
            spec: JobSpec = recorded_job(folder, steps, **changes)
            return running.enter_context(RunningJob(spec, Control(folder), look=leftovers.look))

        yield start
