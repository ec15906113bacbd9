"""A probe over a link whose bandwidth is known, for it is shaped: it finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.nodes import EmulatedNetwork, reason_to_skip

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[2]
WORKERS_PER_NODE = 2
LINK_MBIT = 200.0


def probed_bytes_per_s(network: EmulatedNetwork) -> float:
    """Return what all workers of a node together send to the next one."""
    places = [node for node in network.nodes for _ in range(WORKERS_PER_NODE)]
    names = ",".join(node.name for node in places)
    workers: list[subprocess.Popen[str]] = []
    try:
        for rank, node in enumerate(places):
            program = (sys.executable, "-m", "tests.comm.probe_in_node")
            workers.append(
                subprocess.Popen(
                    [*node.command_prefix, *program, str(rank), network.nodes[0].address, names],
                    cwd=ROOT,
                    env=os.environ | {"GLOO_SOCKET_IFNAME": node.interface},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        printed, _ = workers[0].communicate(timeout=60)
        assert workers[0].returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
    return float(json.loads(printed))


def test_the_bandwidth_of_a_shaped_link_is_found() -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with EmulatedNetwork(2) as network:
        network.shape(LINK_MBIT)
        found = probed_bytes_per_s(network)
    # Headers take 4 % of the link, and a burst may pass at once.
    assert found == pytest.approx(0.96 * LINK_MBIT * 1e6 / 8, rel=0.12)
