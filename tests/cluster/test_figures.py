"""What a job's speed is held against: found without building a model, or left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mics_core.cluster.figures import JobFigures, figures_of
from mics_core.spec import JobSpec, parse_job_spec


def job(**changes: Any) -> JobSpec:
    value: dict[str, Any] = {
        "name": "figures",
        "model": {"family": "gpt2", "hidden_size": 64, "num_layers": 2, "num_heads": 2},
        "data": {"kind": "text", "paths": ["/data/*.txt"]},
        "training": {
            "sequence_length": 32,
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "steps": 10,
        },
    }
    return parse_job_spec(value | changes)


def test_a_known_model_has_about_six_operations_a_parameter_and_token() -> None:
    flops = figures_of(job()).model_flops_per_sample
    assert flops is not None
    num_parameters = 2 * 12 * 64**2 + 257 * 64  # of the blocks' matrices and the output projection
    assert 1.0 <= flops / (6 * num_parameters * 32) < 1.2


def in_precision(precision: str, cluster: str) -> JobSpec:
    training = job().training.model_dump() | {"precision": precision}
    return job(training=training, resources={"gpus": 1, "cluster": cluster})


@pytest.mark.parametrize(("precision", "tflops"), [("fp32", 19.5), ("bf16", 312), ("fp64", 19.5)])
def test_the_peak_is_that_of_the_named_cluster_in_the_jobs_precision(
    precision: str, tflops: float
) -> None:
    assert figures_of(job()).peak_flops_per_s is None
    assert figures_of(in_precision(precision, "p4d.24xlarge")).peak_flops_per_s == tflops * 1e12


def test_a_peak_that_the_cluster_does_not_state_is_left_out_alone(tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "{name: lab, nodes: 2, workers_per_node: 2, memory_gib: 1, peak_tflops: {bf16: 312},"
        " intra_node: {bandwidth_gbit_per_s: 8, latency_us: 50},"
        " inter_node: {bandwidth_gbit_per_s: 1, latency_us: 100}}"
    )
    assert figures_of(in_precision("bf16", str(path))).peak_flops_per_s == 312e12
    found = figures_of(in_precision("fp32", str(path)))
    assert found.peak_flops_per_s is None
    assert found.model_flops_per_sample is not None


def test_what_cannot_be_found_out_is_left_out() -> None:
    own = job(model={"callable": "somewhere:build"})
    assert figures_of(own).model_flops_per_sample is None
    missing = job(resources={"cluster": "/nowhere/cluster.yaml"})
    assert figures_of(missing) == JobFigures()
