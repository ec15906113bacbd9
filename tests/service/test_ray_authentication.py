"""A Ray cluster that asks for its token: the service brings it, and without it gets nowhere."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.cluster

# Ray reads its mode of authentication once in a process, so everybody here has one of their own.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": 0}
cluster = Cluster(initialize_head=True, head_node_args=head)
print("at", cluster.address, cluster.head_node.address_info["webui_url"], flush=True)
sys.stdin.read()
cluster.shutdown()
"""

CLIENT = """
import asyncio, sys
from mics_core.cluster.gateway import RayGateway
from mics_core.errors import ClusterError

async def ask():
    gateway = RayGateway(sys.argv[1], connect_timeout_s=float(sys.argv[2]))
    try:
        await gateway.connect()
        await gateway.health()
        print("jobs:", await gateway.live_jobs(), "driver:", await gateway.driver_status("none"))
    except ClusterError as error:
        print("refused:", error.code)
    await gateway.close()

asyncio.run(ask())
"""


SUBMITTER = """
import asyncio, sys
from mics_core.cluster.gateway import RayGateway
from mics_core.spec import parse_job_spec

async def submit():
    gateway = RayGateway(sys.argv[1], driver_python=sys.executable)
    await gateway.connect()
    spec = parse_job_spec({
        "name": "guarded",
        "model": {"family": "gpt2", "hidden_size": 30, "num_layers": 1, "num_heads": 3},
        "data": {"kind": "text", "paths": [sys.argv[2]]},
        "training": {
            "sequence_length": 16, "global_batch_size": 2, "micro_batch_size": 1, "steps": 2
        },
        "partition_size": 1,
    })
    await gateway.submit("guarded-1", spec)
    while not (status := await gateway.driver_status("guarded-1")).state.is_final:
        await asyncio.sleep(0.2)
    print(status.state.value, status.message)
    await gateway.close()

asyncio.run(submit())
"""


@dataclass(frozen=True)
class Guarded:
    """A running cluster."""

    address: str
    dashboard: str
    token: str


def environment(**changes: str) -> dict[str, str]:
    clean = {key: text for key, text in os.environ.items() if not key.startswith("RAY_A")}
    return clean | changes


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    token = secrets.token_hex(32)
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = next(line.split() for line in process.stdout if line.startswith("at "))
        yield Guarded(found[1], found[2], token)
    finally:
        process.communicate("", timeout=60)


def ask(guarded: Guarded, patience_s: float, **changes: str) -> str:
    return run(CLIENT, guarded.address, str(patience_s), **changes)


def run(program: str, *arguments: str, **changes: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_service_brings_rays_token_along_to_the_cluster_and_to_its_jobs_api(
    guarded: Guarded,
) -> None:
    said = ask(guarded, 30, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=guarded.token)
    assert said == "jobs: [] driver: None"


def test_a_job_is_submitted_and_trains_where_ray_asks_for_its_token(
    guarded: Guarded, tmp_path: Path
) -> None:
    data = tmp_path / "data.txt"
    data.write_text("All the world is a stage. " * 200, encoding="utf-8")
    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": guarded.token}
    said = run(SUBMITTER, guarded.address, str(data), **right)
    assert said.startswith("succeeded"), said


def test_without_rays_token_the_service_is_refused(guarded: Guarded) -> None:
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for changes in (wrong, {"RAY_AUTH_MODE": "disabled"}):
        assert ask(guarded, 3, **changes) == "refused: cluster_unavailable"


def test_rays_jobs_api_asks_for_the_token_too(guarded: Guarded) -> None:
    url = f"http://{guarded.dashboard}/api/jobs/"
    right = {"authorization": f"Bearer {guarded.token}"}
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": "Bearer x"}).status_code in (401, 403)
    assert httpx.get(url, headers=right).status_code == 200
