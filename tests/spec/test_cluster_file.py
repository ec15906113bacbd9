"""The cluster file: what is written is read again, and what breaks a rule is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mics_core.errors import Problem, SpecificationError
from mics_core.planner.profile import Peaks
from mics_core.spec.cluster import (
    ClusterSpec,
    LinkSpec,
    load_cluster_spec,
    parse_cluster_spec,
    write_cluster_spec,
)
from mics_core.spec.planning import profile_of

pytestmark = pytest.mark.pure

CLUSTER = ClusterSpec(
    name="größer: 2 × 8",
    nodes=2,
    workers_per_node=8,
    memory_gib=39.5,
    peak_tflops=312.0,
    host_gb_per_s=25.0,
    intra_node=LinkSpec(bandwidth_gbit_per_s=2400.0, latency_us=9.5),
    inter_node=LinkSpec(bandwidth_gbit_per_s=400.0, latency_us=0.0),
)
BY_HAND = """
name: by hand
nodes: 4
workers_per_node: 2
memory_gib: 16
peak_tflops: 0.05
intra_node: {bandwidth_gbit_per_s: 20, latency_us: 30}
inter_node: {bandwidth_gbit_per_s: 1, latency_us: 200}
"""


def problems_of(value: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecificationError) as refusal:
        parse_cluster_spec(value)
    return refusal.value.problems


def changed(**changes: Any) -> dict[str, Any]:
    return CLUSTER.model_dump(mode="json") | changes


def test_a_written_file_is_read_as_the_same_cluster(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    write_cluster_spec(CLUSTER, file)
    assert load_cluster_spec(file) == CLUSTER


def test_comments_stand_at_the_top_and_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    write_cluster_spec(CLUSTER, file, ("Measured: today.", "two\nlines"))
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["# Measured: today.", "# two", "# lines", "name: 'größer: 2 × 8'"]
    assert load_cluster_spec(file) == CLUSTER


def test_a_file_written_by_hand_may_leave_the_efficiency_out(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(BY_HAND, encoding="utf-8")
    spec = load_cluster_spec(str(file))
    assert (spec.nodes, spec.memory_gib, spec.efficiency) == (4, 16.0, 0.5)
    assert spec.host_gb_per_s == 10.0
    assert spec.inter_node == LinkSpec(bandwidth_gbit_per_s=1.0, latency_us=200.0)


def test_a_peak_is_one_number_or_one_for_each_precision(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    assert profile_of(CLUSTER, "nccl").peak("fp64") == 312e12
    for precisions, peaks in (
        ({"fp32": 19.5, "bf16": 312, "fp64": 9.7}, Peaks(19.5e12, 312e12, 9.7e12)),
        ({"bf16": 312}, Peaks(bf16=312e12)),
    ):
        spec = parse_cluster_spec(changed(peak_tflops=precisions))
        write_cluster_spec(spec, file)
        assert load_cluster_spec(file) == spec
        assert profile_of(spec, "nccl").peak_flops_per_s == peaks


@pytest.mark.parametrize("value", [None, [], "a text", 3])
def test_a_file_without_fields_is_refused(value: Any) -> None:
    (problem,) = problems_of(value)
    assert problem.field == "(cluster)"
    assert problem.rule == "a cluster file is a mapping of fields."
    assert "mics probe" in problem.remedy


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"nodes": 0}, "nodes", "Give a number above 0."),
        ({"nodes": 1.5}, "nodes", "Give a whole number."),
        ({"efficiency": 1.5}, "efficiency", "Give at most 1.0."),
        ({"peak_tflops": float("inf")}, "peak_tflops", "Give a finite number."),
        ({"peak_tflops": 0}, "peak_tflops", "Give a number above 0.0."),
        ({"peak_tflops": "many"}, "peak_tflops", "Give a number."),
        ({"peak_tflops": {}}, "peak_tflops", "Give one for those that jobs train in."),
        ({"peak_tflops": {"bf16": 0}}, "peak_tflops.bf16", "Give a number above 0.0."),
        ({"peak_tflops": {"fp16": 1}}, "peak_tflops.fp16", "Did you mean"),
        ({"name": ""}, "name", "Give at least 1 character."),
        ({"intra_node": 3}, "intra_node", "Give a mapping."),
        (
            {"intra_node": {"bandwidth_gbit_per_s": 0, "latency_us": 1}},
            "intra_node.bandwidth_gbit_per_s",
            "Give a number above 0.0.",
        ),
        ({"inter_node": {"latency_us": 1}}, "inter_node.bandwidth_gbit_per_s", "Add `bandwidth"),
        ({"node": 2}, "node", "Did you mean `nodes`?"),
        ({"gpus": 2}, "gpus", "Known here: efficiency, host_gb_per_s, inter_node, intra_node"),
        ({3: 2}, "3", "Put the name in quotes"),
        (
            {"inter_node": {"bandwidth_gbit": 1, "bandwidth_gbit_per_s": 1, "latency_us": 1}},
            "inter_node.bandwidth_gbit",
            "Did you mean `bandwidth_gbit_per_s`?",
        ),
    ],
)
def test_a_broken_rule_names_field_and_remedy(
    changes: dict[Any, Any], field: str, words: str
) -> None:
    (problem,) = problems_of({**changed(), **changes})
    assert problem.field == field
    assert words in problem.remedy


def test_all_broken_rules_are_told_at_once() -> None:
    found = problems_of(changed(nodes=0, colour="red"))
    assert {problem.field for problem in found} == {"nodes", "colour"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name: [", "no valid YAML in line 1"),
        (b"name: \xff", "cannot be read"),
        (b"name: 2020-99-99", "cannot read"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecificationError, match=words):
        load_cluster_spec(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match=r"No such file.*Name an existing YAML file"):
        load_cluster_spec(tmp_path / "none.yaml")


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match=r"cannot be written.*existing folder"):
        write_cluster_spec(CLUSTER, tmp_path / "none" / "cluster.yaml")
