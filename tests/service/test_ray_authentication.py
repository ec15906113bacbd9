"""A Ray cluster that asks for its token: the service brings it, and without it gets nowhere."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

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
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, guarded.address, str(patience_s)],
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
