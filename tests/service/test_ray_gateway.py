"""The real gateway against a real Ray, with a supervisor that only answers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from fakes import FakeSupervisor, specification
from ray.cluster_utils import Cluster
from running import DEADLINE_S

from mics_core.cluster import names
from mics_core.cluster.gateway import RayGateway
from mics_core.errors import ClusterError, JobConflictError, JobNotFoundError, ScaleError
from mics_core.spec import parse_job_spec
from mics_core.spec.changes import GroupsChange
from mics_core.spec.status import DriverState, DriverStatus, JobState

pytestmark = pytest.mark.cluster


SPEC = specification()


class Supervisor:
    """Answers as a job's supervisor does, with plain values."""

    def __init__(self, job_id: str):
        self._playing = FakeSupervisor(job_id, parse_job_spec(SPEC))

    async def spec(self) -> dict[str, Any]:
        return self._playing.spec.model_dump(mode="json")

    async def status(self) -> dict[str, Any]:
        return self._playing.status().model_dump(mode="json")

    async def events(self, after: int, timeout_s: float) -> list[dict[str, Any]]:
        news = await self._playing.events(after, timeout_s)
        return [event.model_dump(mode="json") for event in news]

    async def scale(self, change: GroupsChange, reason: str) -> dict[str, Any]:
        assert "through the service" in reason
        return self._playing.scale(change).model_dump(mode="json")

    async def pause(self, reason: str) -> dict[str, Any]:
        assert "through the service" in reason
        return self._playing.pause().model_dump(mode="json")

    async def cancel(self, reason: str) -> dict[str, Any]:
        assert reason
        return self._playing.cancel().model_dump(mode="json")

    async def train(self, num_steps: int) -> None:
        self._playing.train(num_steps)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Actors import this module; workers inherit the path from the raylet.
    here = os.path.dirname(__file__)  # noqa: PTH120
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, path]))
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    os.environ["PYTHONPATH"] = path


@pytest.fixture
def loop(cluster: Cluster) -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def gateway(cluster: Cluster, loop: asyncio.Runner) -> RayGateway:
    gateway = RayGateway(cluster.address, driver_python="python-that-is-not-there")
    loop.run(gateway.connect())
    return gateway


def start_supervisor(job_id: str) -> Any:
    actor = ray.remote(num_cpus=0)(Supervisor)
    named = actor.options(name=names.supervisor_name(job_id), namespace=names.NAMESPACE)
    return named.remote(job_id)


def test_a_live_job_answers_through_its_supervisor(
    gateway: RayGateway, loop: asyncio.Runner
) -> None:
    handle = start_supervisor("live")

    async def scenario() -> None:
        await gateway.health()
        spec = await gateway.spec("live")
        assert spec.name == SPEC["name"]
        assert await gateway.live_jobs() == ["live"]
        assert await gateway.events("live", 0, 0.05) == []
        waiting = asyncio.create_task(gateway.events("live", 0, DEADLINE_S))
        await handle.train.remote(2)
        first = await waiting
        assert (first[0].sequence, first[0].kind) == (1, "state")
        rest = await gateway.events("live", len(first), DEADLINE_S) if len(first) < 4 else []
        assert [event.kind for event in first + rest] == ["state", "generation", "step", "step"]
        status = await gateway.status("live")
        assert (status.state, status.step) == (JobState.RUNNING, 2)
        assert (await gateway.scale("live", GroupsChange(3))).wanted_groups == 3
        with pytest.raises(ScaleError, match="9 partition groups"):
            await gateway.scale("live", GroupsChange(9))
        await gateway.cancel("live")
        with pytest.raises(JobConflictError, match="already"):
            await gateway.cancel("live")

    loop.run(scenario())
    ray.kill(handle)


def test_a_job_without_a_supervisor_is_not_found(gateway: RayGateway, loop: asyncio.Runner) -> None:
    with pytest.raises(JobNotFoundError, match="nobody"):
        loop.run(gateway.status("nobody"))


def test_a_supervisor_that_dies_while_it_is_asked_is_not_found(
    gateway: RayGateway, loop: asyncio.Runner
) -> None:
    handle = start_supervisor("dying")

    async def scenario() -> None:
        await gateway.status("dying")
        waiting = asyncio.create_task(gateway.events("dying", 0, DEADLINE_S))
        await asyncio.to_thread(ray.get, handle.status.remote())
        ray.kill(handle)
        with pytest.raises(JobNotFoundError, match="dying"):
            await waiting

    loop.run(scenario())


def test_a_driver_is_started_watched_and_stopped(gateway: RayGateway, loop: asyncio.Runner) -> None:
    async def ended(job_id: str) -> DriverStatus:
        while True:
            status = await gateway.driver_status(job_id)
            assert status is not None
            if status.state.is_final:
                return status
            await asyncio.sleep(0.1)

    async def scenario() -> None:
        assert await gateway.driver_status("nobody") is None
        await gateway.stop_driver("nobody")
        await gateway.submit("submitted", parse_job_spec(SPEC))
        status = await asyncio.wait_for(ended("submitted"), 60.0)
        assert status.state is DriverState.FAILED
        assert "python-that-is-not-there" in status.message
        with pytest.raises(ClusterError, match="submit job submitted"):
            await gateway.submit("submitted", parse_job_spec(SPEC))

    loop.run(scenario())


def test_a_closed_gateway_says_so_and_connects_again(
    gateway: RayGateway, loop: asyncio.Runner
) -> None:
    async def scenario() -> None:
        await gateway.close()
        with pytest.raises(ClusterError, match="not connected"):
            await gateway.live_jobs()
        await gateway.connect()
        await gateway.connect()
        await gateway.health()

    loop.run(scenario())


def test_ray_leaves_the_process_its_signal_handlers(
    gateway: RayGateway, loop: asyncio.Runner
) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        loop.run(gateway.close())
        signal.raise_signal(signal.SIGTERM)
        loop.run(gateway.connect())
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM, signal.SIGTERM]


def test_a_cluster_that_is_not_there_is_said_at_once(loop: asyncio.Runner) -> None:
    ray.shutdown()
    gateway = RayGateway("127.0.0.1:1", connect_timeout_s=DEADLINE_S)
    with pytest.raises(ClusterError, match=r"could not connect: .*refused"):
        loop.run(gateway.connect())
