"""What the driver settles before anything is started, on nodes that are only said to be there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mics_core.errors import LayoutError, SpecificationError
from mics_core.planner.layout import ClusterShape, NodeShape, num_groups_held
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


@pytest.mark.parametrize(
    ("workers", "size", "nodes"),
    [
        pytest.param((8, 4, 4, 4), 12, 3, id="12 on 1 x 8 + 3 x 4"),
        pytest.param((8, 4, 4), 8, 1, id="8 on 1 x 8 + 2 x 4"),
        pytest.param((4, 4, 4, 4, 8), 16, 4, id="16 on 4 x 4 + 1 x 8"),
    ],
)
def test_on_unequal_living_nodes_a_group_stands_where_the_placement_rules_put_it(
    settle: Settle, cluster_file: str, workers: tuple[int, ...], size: int, nodes: int
) -> None:
    found = settle(
        *workers,
        partition_size=size,
        training={"global_batch_size": 192},
        engine={"hierarchical": "always"},
        resources={"cluster": cluster_file},
    )
    assert found.partition_size == size
    assert found.reason.startswith(f"p = {size}, 1 group, micro-batch 2")
    assert (found.strategy.gather_block == "hierarchical") == (nodes > 1)


def test_a_choice_on_unequal_living_nodes_can_be_placed(settle: Settle, cluster_file: str) -> None:
    for workers in ((8, 4, 4, 4), (8, 4, 4), (4, 4, 4, 4, 8), (3, 5)):
        found = settle(*workers, groups={"maximum": 4}, resources={"cluster": cluster_file})
        nodes = ClusterShape(tuple(NodeShape(str(i), count) for i, count in enumerate(workers)))
        assert num_groups_held(found.partition_size, nodes) >= 1


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


RULE_OF_NODES = "a partition group fits on one node or takes whole nodes of equal size."
TOO_MANY_GROUPS = "groups.maximum (65) must not exceed the 32 micro-batches of a step"
NOTHING_TO_DO = "or a group would have nothing to do."
LOWER = "Lower groups.maximum or micro_batch_size, or raise global_batch_size."


@pytest.mark.parametrize("cluster", [False, True], ids=["by memory", "by speed"])
@pytest.mark.parametrize(
    ("workers", "changes", "value", "rule", "remedy"),
    [
        pytest.param(
            (4, 4),
            {"partition_size": 6},
            "partition_size 6 on nodes of 2 × 4 workers",
            (RULE_OF_NODES,),
            "Choose 4 or 8, leave it at 'auto', or add nodes.",
            id="no multiple of k",
        ),
        pytest.param(
            (4, 4, 2),
            {"partition_size": 6},
            "partition_size 6 on nodes of 2 × 4 and 1 × 2 workers",
            (RULE_OF_NODES,),
            "Choose 4 or 8, leave it at 'auto', or add nodes.",
            id="unequal nodes",
        ),
        pytest.param(
            (2, 2),
            {"groups": {"wanted": 65}},
            "partition_size 'auto'",
            (TOO_MANY_GROUPS, NOTHING_TO_DO),
            LOWER,
            id="more groups than micro-batches",
        ),
    ],
)
def test_an_impossible_layout_is_refused_with_value_rule_and_remedy(
    settle: Settle,
    cluster_file: str,
    cluster: bool,
    workers: tuple[int, ...],
    changes: dict[str, Any],
    value: str,
    rule: tuple[str, ...],
    remedy: str,
) -> None:
    batch = 64 if "groups" in changes else 96
    resources = {"cluster": cluster_file} if cluster else {}
    with pytest.raises(LayoutError) as caught:
        settle(*workers, training={"global_batch_size": batch}, resources=resources, **changes)
    (problem,) = caught.value.problems
    assert problem.field == "partition_size"
    assert problem.value.startswith(value)
    assert [part for part in rule if part not in problem.rule] == []
    assert problem.rule.endswith(rule[-1])
    assert problem.remedy == remedy
    assert str(caught.value).endswith(f" is refused: {problem.rule} {problem.remedy}")


def test_more_groups_than_micro_batches_are_refused_before_any_cluster_is_asked() -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_job_spec(job(partition_size=4, groups={"minimum": 1, "wanted": 2, "maximum": 9}))
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("groups.maximum", "9")
    assert problem.rule == (
        "groups.maximum (9) must not exceed the 8 micro-batches of a step"
        f" (global_batch_size 64 / 8), {NOTHING_TO_DO}"
    )
    assert problem.remedy == LOWER


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
