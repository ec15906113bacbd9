"""What the driver settles before anything is started, on nodes that are only said to be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mics_core.errors import LayoutError
from mics_core.planner.layout import ClusterShape, NodeShape
from mics_core.planner.strategy import Strategy, default_strategy
from mics_core.spec import parse_job_spec

Settle = Callable[..., Any]

LAB = """\
name: lab
nodes: 2
workers_per_node: 2
memory_gib: 4
peak_tflops: 0.05
intra_node: {bandwidth_gbit_per_s: 8, latency_us: 50}
inter_node: {bandwidth_gbit_per_s: 0.05, latency_us: 100}
"""


def job(**changes: Any) -> dict[str, Any]:
    training = {
        "sequence_length": 16,
        "global_batch_size": 64,
        "micro_batch_size": 2,
        "steps": 4,
        **changes.pop("training", {}),
    }
    return {
        "name": "example",
        "model": {"family": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 2},
        "data": {"kind": "text", "paths": ["/data/*.txt"]},
        "training": training,
        "resources": {"memory_gib": 4, **changes.pop("resources", {})},
        **changes,
    }


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Settle:
    pytest.importorskip("ray")
    from mics_core.cluster import layout

    def settle(*workers: int, **changes: Any) -> Any:
        nodes = ClusterShape(tuple(NodeShape(str(i), count) for i, count in enumerate(workers)))
        monkeypatch.setattr(layout, "cluster_shape", lambda _resources: nodes)
        return layout.settle_layout(parse_job_spec(job(**changes)))

    return settle


@pytest.fixture
def cluster_file(tmp_path: Path) -> str:
    path = tmp_path / "lab.yaml"
    path.write_text(LAB)
    return str(path)


def test_what_the_job_fixes_stays(settle: Settle) -> None:
    found = settle(2, 2, partition_size=4)
    assert found.reason == "The specification asks for it."
    assert found.strategy == default_strategy(4, 2)
    assert found.spec.partition_size == 4
    assert settle(2, 2, partition_size=2).strategy == Strategy()


def test_without_a_cluster_memory_decides(settle: Settle) -> None:
    found = settle(2, 2, training={"micro_batch_size": "auto"})
    assert found.partition_size == found.spec.partition_size == 1
    assert found.spec.training.settled_micro_batch_size == 32
    assert "smallest partition size that fits" in found.reason


def test_with_a_cluster_predicted_speed_decides(settle: Settle, cluster_file: str) -> None:
    found = settle(
        2,
        2,
        partition_size=4,
        training={"micro_batch_size": "auto", "activation_checkpointing": "auto"},
        resources={"cluster": cluster_file},
    )
    assert found.partition_size == 4
    assert "layouts that fit" in found.reason
    assert found.spec.training.settled_micro_batch_size >= 1
    assert found.spec.training.settled_activation_checkpointing is False
    assert found.strategy.gather_block == "hierarchical"
    assert parse_job_spec(found.spec.model_dump(mode="json")) == found.spec


def test_living_nodes_go_before_the_file(settle: Settle, cluster_file: str) -> None:
    with pytest.raises(LayoutError, match="whole nodes of equal size"):
        settle(3, 3, partition_size=4, resources={"cluster": cluster_file})
    none_yet = settle(partition_size=4, resources={"cluster": cluster_file})
    assert none_yet.partition_size == 4


@pytest.mark.parametrize("cluster", [False, True])
def test_what_is_kept_by_node_is_refused_inside_one(
    settle: Settle, cluster_file: str, cluster: bool
) -> None:
    resources = {"cluster": cluster_file} if cluster else {}
    with pytest.raises(LayoutError, match=r"engine.reshard 'node' needs"):
        settle(2, 2, partition_size=2, engine={"reshard": "node"}, resources=resources)


def test_too_little_memory_is_refused_with_the_remedy(settle: Settle, cluster_file: str) -> None:
    for cluster in ({}, {"cluster": cluster_file}):
        with pytest.raises(LayoutError) as caught:
            settle(2, 2, resources={"memory_gib": 1e-4, **cluster})
        assert "at least" in caught.value.problems[0].remedy


def test_a_counted_transformer_is_what_the_formulas_say() -> None:
    pytest.importorskip("torch")
    from mics_core.engine.counting import count_shape
    from mics_core.spec.planning import shape_by_formula

    spec = parse_job_spec(job())
    counted, known = count_shape(spec), shape_by_formula(spec, 257)
    assert known is not None
    assert counted.parameters == known.parameters
    assert counted.block == known.block
    assert counted.root == known.root
