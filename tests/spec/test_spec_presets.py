"""Presets of models, and what of a layout may be left to the planner."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from test_spec_rules import job

from mics_core.errors import SpecificationError
from mics_core.planner.parameters import count_parameters
from mics_core.planner.prediction import Layout
from mics_core.planner.shape import shape_of_counts
from mics_core.spec import TransformersModel, load_job_spec, parse_job_spec
from mics_core.spec.planning import (
    batch_problem,
    find_cluster,
    pins_of,
    settled_spec,
    shape_by_formula,
    shape_from_json,
    transformer_sizes,
    workload_of,
)
from mics_core.spec.presets import MODEL_PRESETS

pytestmark = pytest.mark.pure

SIZES = {
    "bert-10b": 10e9,
    "bert-15b": 15e9,
    "bert-20b": 20e9,
    "bert-50b": 50e9,
    "bert-base": 110e6,
    "bert-large": 336e6,
    "roberta-base": 125e6,
    "gpt2-small": 124e6,
    "gpt2-medium": 355e6,
    "gpt2-large": 774e6,
    "gpt2-xl": 1558e6,
    "llama-160m": 162e6,
    "llama-1b": 1236e6,
}


def with_preset(**model: Any) -> dict[str, Any]:
    return job(model=model, training__sequence_length=512)


def model_of(value: dict[str, Any]) -> TransformersModel:
    found = parse_job_spec(value).model
    assert isinstance(found, TransformersModel)
    return found


@pytest.mark.parametrize("name", MODEL_PRESETS)
def test_every_preset_is_a_valid_model_near_its_name(name: str) -> None:
    spec = parse_job_spec(with_preset(preset=name))
    assert isinstance(spec.model, TransformersModel)
    assert spec.model.preset == name
    parameters = count_parameters(transformer_sizes(spec, spec.model, 257)).total
    if name.endswith("-tiny"):
        assert parameters < 2e6
    else:
        assert parameters == pytest.approx(SIZES[name], rel=0.02)


def test_own_fields_go_over_the_presets() -> None:
    model = model_of(with_preset(preset="gpt2-small", num_layers=2, dropout=0.1))
    assert (model.num_layers, model.hidden_size, model.dropout) == (2, 768, 0.1)


def test_an_expanded_preset_survives_json() -> None:
    spec = parse_job_spec(with_preset(preset="llama-1b", num_layers=3))
    assert parse_job_spec(json.loads(spec.model_dump_json())) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("bert-10", "Did you mean 'bert-10b'"), ("zzz", "Known: 'bert-tiny'"), (7, "Known: ")],
)
def test_an_unknown_preset_is_refused_with_close_names(name: object, remedy: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_job_spec(with_preset(preset=name))
    (problem,) = caught.value.problems
    assert problem.field == "model.preset"
    assert problem.value == repr(name)
    assert problem.rule == "preset must be a known model."
    assert remedy in problem.remedy


def test_the_schema_asks_for_the_preset_or_the_sizes() -> None:
    schema = TransformersModel.model_json_schema()
    assert "required" not in schema
    assert {"required": ["preset"]} in schema["anyOf"]
    assert {"required": ["family", "hidden_size", "num_layers", "num_heads"]} in schema["anyOf"]
    assert "bert-10b" in schema["properties"]["preset"]["examples"]


def test_the_planner_may_choose_micro_batches_and_checkpointing() -> None:
    spec = parse_job_spec(
        job(training__micro_batch_size="auto", training__activation_checkpointing="auto")
    )
    assert pins_of(spec).micro_batch_size == "auto"
    with pytest.raises(AssertionError):
        _ = spec.training.settled_micro_batch_size
    settled = settled_spec(spec, Layout(2, 1, 4, is_checkpointed=True))
    assert settled.partition_size == 2
    assert settled.training.settled_micro_batch_size == 4
    assert settled.training.settled_activation_checkpointing is True
    assert parse_job_spec(settled.model_dump()) == settled


def test_an_open_micro_batch_still_has_to_leave_work_for_all_groups() -> None:
    open_batch = {"training__micro_batch_size": "auto", "partition_size": 4}
    with pytest.raises(SpecificationError, match=r"groups.maximum \(3\)"):
        parse_job_spec(job(**open_batch, groups={"wanted": 3}))
    spec = parse_job_spec(job(**open_batch, groups={"wanted": 2}))
    assert batch_problem(spec, 4, 1) is None
    assert "must not exceed the 1 micro-batches" in str(batch_problem(spec, 4, 2))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training__micro_batch_size": 0}, "training.micro_batch_size"),
        ({"training__micro_batch_size": "many"}, "training.micro_batch_size"),
        ({"training__activation_checkpointing": "maybe"}, "training.activation_checkpointing"),
    ],
)
def test_what_is_neither_a_value_nor_auto_is_one_problem(
    changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_job_spec(job(**changes))
    (problem,) = caught.value.problems
    assert problem.field == field
    assert "'auto'" in problem.remedy


def test_what_a_job_fixes_reaches_the_planner() -> None:
    spec = parse_job_spec(
        job(
            engine={"reshard": "never", "hierarchical": "always", "bucket_mib": 2},
            groups={"wanted": 2, "maximum": 3},
            training__precision="bf16",
            training__optimizer={"kind": "sgd", "momentum": 0.9},
            resources={"gpus": 1},
        )
    )
    pins, workload = pins_of(spec), workload_of(spec)
    assert (pins.reshard, pins.hierarchical, pins.largest_groups) == ("never", "always", 3)
    assert (workload.precision, workload.optimizer) == ("bf16", "sgd")
    assert workload.has_momentum
    assert workload.bucket_bytes == 2 << 20
    assert (workload.is_elastic, workload.writes_checkpoints) == (True, False)
    assert not pins.asks_for_one_group
    alone = pins_of(parse_job_spec(job()))
    assert (alone.largest_groups, alone.asks_for_one_group) == (None, True)


def test_what_takes_memory_of_a_job_reaches_the_planner() -> None:
    usual = workload_of(parse_job_spec(job()))
    assert (usual.determinism, usual.minimum_groups) == ("relaxed", 1)
    assert (usual.is_elastic, usual.writes_checkpoints) == (False, False)
    assert usual.reuses_gradients
    spec = parse_job_spec(
        job(
            groups={"minimum": 2, "wanted": 2},
            checkpoint={"directory": "/checkpoints"},
            engine={"reuse_gradients": False},
            training__determinism="bitwise",
        )
    )
    asked = workload_of(spec)
    assert not asked.reuses_gradients
    assert (asked.determinism, asked.minimum_groups) == ("bitwise", 2)
    assert (asked.is_elastic, asked.writes_checkpoints) == (True, True)


def test_only_models_that_formulas_describe_are_counted_by_them() -> None:
    known = parse_job_spec(job(model__options={"num_key_value_heads": 1}, model__family="llama"))
    assert shape_by_formula(known, 257) is not None
    assert shape_by_formula(parse_job_spec(job(model__options={"head_dim": 9})), 257) is None
    assert shape_by_formula(parse_job_spec(job(model={"callable": "a:b"})), 257) is None


def test_counts_survive_json() -> None:
    shape = shape_of_counts((10, 30), 7, 16)
    assert shape.parameters == 47
    assert shape.largest_block == 30
    assert shape_from_json(json.dumps(dataclasses.asdict(shape))) == shape


CLUSTER = """\
name: lab
nodes: 3
workers_per_node: 2
memory_gib: 4
peak_tflops: 0.1
intra_node: {bandwidth_gbit_per_s: 8, latency_us: 50}
inter_node: {bandwidth_gbit_per_s: 1, latency_us: 100}
"""


def test_a_cluster_is_a_file_or_a_name(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(CLUSTER)
    found = find_cluster(str(path), "gloo")
    assert (found.num_workers, found.backend) == (6, "gloo")
    assert found.inter_node.bandwidth_bytes_per_s == 1.25e8
    assert found.inter_node.latency_s == pytest.approx(1e-4)
    assert found.host_bytes_per_s == 10e9
    path.write_text(f"{CLUSTER}host_gb_per_s: 25\n")
    assert find_cluster(str(path), "nccl").host_bytes_per_s == 25e9
    assert find_cluster("p4d.24xlarge", "gloo").backend == "nccl"
    for name, rule in (("p4d.24xl", "neither a known cluster"), ("no.yaml", "cannot be read")):
        with pytest.raises(SpecificationError, match=rule):
            find_cluster(name, "gloo")
    with pytest.raises(SpecificationError, match="are not read"):
        find_cluster(str(path), "gloo", may_read_files=False)


def test_a_cluster_file_counts_from_the_jobs_folder_and_a_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    for written, read in (
        ("lab.yaml", str(tmp_path / "lab.yaml")),
        ("p4d.24xlarge", "p4d.24xlarge"),
    ):
        path.write_text(json.dumps(job(resources={"cluster": written})))
        assert load_job_spec(path).resources.cluster == read
