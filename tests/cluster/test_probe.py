"""`mics probe` on a real Ray cluster: its file, its refusals, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
import yaml
from ray.util.state import list_actors

from mics_core.cluster.layout import settle_layout
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.probe import ProbeSettings, equal_nodes, probe_cluster
from mics_core.errors import ClusterError, LayoutError
from mics_core.planner.layout import NodeShape
from mics_core.spec import load_job_spec
from mics_core.spec.cluster import LinkSpec, load_cluster_spec
from mics_core.spec.job import ResourcesSpec
from tests.cluster.leftovers import check_that_jobs_left_nothing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NUM_NODES = 2
WORKER = ResourcesSpec(cpus=1.0)
SHORT = ProbeSettings(message_bytes=(4 << 10, 64 << 10), repetitions=2, compute_s=0.1)


# Of a cluster as these tests have it, with too little memory for the model in one worker.
LAB = """\
name: lab
nodes: 2
workers_per_node: 2
memory_gib: 0.025
peak_tflops: 0.05
intra_node: {bandwidth_gbit_per_s: 8, latency_us: 50}
inter_node: {bandwidth_gbit_per_s: 0.05, latency_us: 100}
"""
OPEN_JOB = """\
name: open
model: {family: gpt2, hidden_size: 192, num_layers: 4, num_heads: 2}
data: {kind: text, paths: [lab.yaml]}
partition_size: auto
training:
  sequence_length: 16
  global_batch_size: 16
  micro_batch_size: auto
  activation_checkpointing: auto
  steps: 2
resources: {cpus: 1, cluster: lab.yaml}
"""


def mics_probe(*words: str, address: str) -> subprocess.CompletedProcess[str]:
    return mics("probe", *words, address=address)


def mics(*words: str, address: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from service.cli.main import main; main()", *words]
    environment = os.environ | {"MICS_RAY_ADDRESS": address, "COLUMNS": "160"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)


def test_the_program_writes_a_file_that_loads_again(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    done = mics_probe("-o", str(file), "--quick", address=cluster.address)
    assert done.returncode == 0, done.stderr
    spec = load_cluster_spec(file)
    assert (spec.name, spec.nodes, spec.workers_per_node) == ("2 × 2 CPU workers", 2, 2)
    memory = min(node["Resources"].get("memory", 0.0) for node in ray.nodes())
    assert spec.memory_gib > 0.0
    assert spec.memory_gib >= float(f"{memory / 2 / 2**30:.3g}") * 0.99
    assert "between nodes, a node" in done.stdout
    assert f"of which a block like GPT-2's reaches {spec.efficiency:.0%};" in done.stdout
    assert f"mics plan job.yaml --cluster {file}" in done.stdout
    assert "Measuring 4 workers on 2 nodes." in done.stderr
    assert file.read_text(encoding="utf-8").startswith("# Measured by `mics probe` on ")
    assert "# efficiency: forward and backward of a block like GPT-2's" in file.read_text("utf-8")
    check_that_jobs_left_nothing()


def test_the_program_tells_programs_everything(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    words = ("--workers-per-node", "1", "--memory-gib", "3", "--name", "two")
    done = mics_probe("-o", str(file), "--quick", "--json", *words, address=cluster.address)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["cluster"] == yaml.safe_load(file.read_text(encoding="utf-8"))
    assert (answer["cluster"]["name"], answer["cluster"]["memory_gib"]) == ("two", 3.0)
    assert "set equal to inter_node" in answer["notes"][0]
    assert answer["measured"]["intra_node"] is None
    assert answer["measured"]["inter_node"]["ring_size"] == 2
    assert len(answer["measured"]["tflops"]) == 2
    slowest = min(answer["measured"]["block_tflops"])
    share = slowest / statistics.median(answer["measured"]["tflops"])
    assert answer["cluster"]["efficiency"] == pytest.approx(min(1.0, share), rel=1e-3)


def test_an_open_layout_is_settled_on_the_cluster_as_the_plan_prints_it(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "lab.yaml").write_text(LAB)
    file = tmp_path / "job.yaml"
    file.write_text(OPEN_JOB)
    done = mics("plan", str(file), "--json", address=cluster.address)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    settled = settle_layout(load_job_spec(file))
    choice = printed["choice"]
    assert settled.partition_size == choice["partition_size"] > 1
    assert settled.reason == printed["reason"]
    training = settled.spec.training
    assert training.settled_micro_batch_size == choice["micro_batch_size"]
    assert training.settled_activation_checkpointing == choice["activation_checkpointing"]
    assert asdict(settled.strategy) == {name: choice[name] for name in asdict(settled.strategy)}


def test_more_workers_than_any_node_holds_are_refused(cluster: LocalCluster) -> None:
    with pytest.raises(LayoutError, match=r"no living node can hold that many.*largest holds 2"):
        probe_cluster(WORKER, 3)


def test_a_busy_cluster_is_refused_and_the_wait_for_it_given_up(cluster: LocalCluster) -> None:
    @ray.remote(num_cpus=1)
    class Busy:
        def ready(self) -> bool:
            return True

    busy = Busy.remote()
    ray.get(busy.ready.remote())
    with pytest.raises(ClusterError, match=r"no 2 free worker slots each within 2 s\. Wait until"):
        probe_cluster(WORKER, settings=SHORT, room_timeout_s=2.0)
    ray.kill(busy)
    check_that_jobs_left_nothing()


def test_workers_that_do_not_answer_in_time_are_ended(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match="4 of 4 workers of the probe did not answer in time"):
        probe_cluster(WORKER, settings=SHORT, timeout_s=0.0)
    check_that_jobs_left_nothing()


def test_a_lost_worker_ends_the_probe_at_once(cluster: LocalCluster) -> None:
    def end_one(sentence: str) -> None:
        if sentence.startswith("Measuring"):
            filters = [("class_name", "=", "ProbeWorker"), ("state", "=", "ALIVE")]
            os.kill(list_actors(filters=filters)[0].pid, 9)

    with pytest.raises(ClusterError, match="A worker of the probe failed"):
        probe_cluster(WORKER, settings=SHORT, tell=end_one)
    check_that_jobs_left_nothing()


def test_the_cluster_can_be_measured_from_python(cluster: LocalCluster) -> None:
    said: list[str] = []
    stated = LinkSpec(bandwidth_gbit_per_s=10.0, latency_us=50.0)
    found = probe_cluster(WORKER, settings=SHORT, inter_node=stated, tell=said.append)
    assert found.findings.spec.inter_node == stated
    assert found.report.inter_node is not None
    assert set(found.report.nodes) == set(cluster.node_ids)
    assert said[-1] == "Measuring 4 workers on 2 nodes."
    check_that_jobs_left_nothing()


# Refusals that need no cluster.


def test_an_address_where_nobody_answers_is_unreachable(tmp_path: Path) -> None:
    done = mics_probe("-o", str(tmp_path / "x.yaml"), address="127.0.0.1:9")
    assert done.returncode == 3, done.stderr
    assert "No Ray cluster can be reached at '127.0.0.1:9'" in done.stderr
    assert "--address" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("-o", "none/cluster.yaml"), "no file in an existing folder"),
        (("--inter-gbit", "10"), "Give --inter-latency-us as well."),
        (("--inter-latency-us", "10"), "Give --inter-gbit as well."),
        (("--inter-gbit", "inf", "--inter-latency-us", "1"), "Give a finite number."),
        (("--cpus-per-worker", "0"), "Give a number above 0.0."),
        (("--memory-gib", "-1"), "Give a number above 0.0."),
        (("--name", "x" * 101), "a name has 1 to 100 characters"),
        (("--workers-per-node", "0"), "--workers-per-node"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    words: tuple[str, ...], sentence: str
) -> None:
    done = mics_probe(*words, address="127.0.0.1:9")
    assert done.returncode == 2
    assert sentence in done.stderr


def test_unequal_nodes_are_refused_with_the_choices() -> None:
    nodes = (NodeShape("a", 4), NodeShape("b", 2), NodeShape("c", 4))
    with pytest.raises(LayoutError, match="2 for 3 of the nodes or 4 for 2 of the nodes"):
        equal_nodes(nodes, WORKER, None)
    assert equal_nodes(nodes, WORKER, 2) == list(nodes)
    assert [node.node_id for node in equal_nodes(nodes, WORKER, 4)] == ["a", "c"]
    with pytest.raises(LayoutError, match="no living node can hold a worker"):
        equal_nodes((), WORKER, None)
