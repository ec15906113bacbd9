"""A node whose network is cut: nothing closes, nothing answers, and Ray cannot end its processes.

Real Ray nodes in network namespaces. The link comes back before Ray gives the node up, so that the
evicted group is alive, connected, and sure that it is a member.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.harness.nodes import EmulatedNetwork, Node, reason_to_skip
from tests.cluster.conftest import ROOT
from tests.cluster.cut_story import SILENCE_S, STEPS
from tests.cluster.jobs import gold_losses
from tests.cluster.running import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PORT = 6379
NUM_NODES = 3


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cut")
    with EmulatedNetwork(NUM_NODES) as network, ExitStack() as processes:
        head, *others = network.nodes
        address = f"{head.address}:{PORT}"
        head_options = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        processes.enter_context(ray_node(head, folder, *head_options))
        for node in others:
            options = [f"--address={address}", "--num-cpus=1"]  # a group each
            processes.enter_context(ray_node(node, folder, *options))
        story = [sys.executable, "-m", "tests.cluster.cut_story", address, str(folder)]
        with started(head, story, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as teller:
            assert teller.stdout is not None
            assert teller.stdin is not None
            for line in teller.stdout:
                what, _, where = line.strip().partition(" ")
                if what not in ("cut", "heal"):
                    continue
                [index] = [i for i, node in enumerate(network.nodes) if node.address == where]
                network.connect(index, connected=what == "heal")
                teller.stdin.write("done\n")
                teller.stdin.flush()
            assert teller.wait() == 0, (folder / "errors").read_text()[-3000:]
        yield json.loads((folder / "seen.json").read_text())


@contextmanager
def ray_node(node: Node, folder: Path, *options: str) -> Iterator[None]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    log = folder / f"{node.name}.log"
    with (
        log.open("w") as output,
        started(
            node,
            [*command, f"--node-ip-address={node.address}", *options],
            folder,
            stdout=output,
        ) as ray,
    ):
        eventually(lambda: "Ray runtime started" in log.read_text(), f"Ray on {node.name}", 60)
        try:
            yield
        finally:
            process = psutil.Process(ray.pid)
            victims = [process, *process.children(recursive=True)]
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
            psutil.wait_procs(victims, timeout=30)


@contextmanager
def started(
    node: Node, command: list[str], folder: Path, **pipes: Any
) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray must not find out about the cut first.
        "RAY_health_check_failure_threshold": "100",
        "RAY_TMPDIR": str(folder),
        # The machine's name is no address of an emulated node.
        "GLOO_SOCKET_IFNAME": node.interface,
    }
    environment.pop("RAY_ADDRESS", None)
    with (folder / "errors").open("a") as errors:
        quiet = {"stdout": errors} | pipes
        process = subprocess.Popen(
            [*node.command_prefix, *command],
            cwd=ROOT,
            text=True,
            env=environment,
            stderr=errors,
            start_new_session=True,
            **quiet,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_group_that_was_cut_off_is_evicted_for_its_silence(seen: dict[str, Any]) -> None:
    lost = seen["status"]["groups"][1]
    assert lost["state"] == "lost"
    assert lost["reason"].startswith(f"It has not answered for {SILENCE_S:g} s since generation ")
    assert seen["num_groups"] == [2, 1, 1, 1]


def test_it_goes_when_it_is_connected_again_and_another_takes_its_place(
    seen: dict[str, Any],
) -> None:
    eventually(
        lambda: not any(map(psutil.pid_exists, seen["victims"])), "the end of the evicted group"
    )
    cut_node, node_of_replacement = seen["nodes"]
    assert node_of_replacement == cut_node  # it waited for the room that the evicted group held


def test_it_has_written_nothing_into_the_run(seen: dict[str, Any]) -> None:
    before, after = seen["survivors"]
    assert before == after
    assert seen["losses"] == pytest.approx(gold_losses(STEPS), rel=1e-5)
    samples = seen["status"]["samples"]
    assert (samples["used"], samples["repeated"]) == (samples["due"], 0)
