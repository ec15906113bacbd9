"""What a job's speed is held against: found without building a model, or left out."""

from __future__ import annotations

from typing import Any

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


def test_the_peak_is_that_of_the_cluster_which_the_job_names() -> None:
    assert figures_of(job()).peak_flops_per_s is None
    named = job(resources={"gpus": 1, "cluster": "p4d.24xlarge"})
    assert figures_of(named).peak_flops_per_s == 312e12


def test_what_cannot_be_found_out_is_left_out() -> None:
    own = job(model={"callable": "somewhere:build"})
    assert figures_of(own).model_flops_per_sample is None
    missing = job(resources={"cluster": "/nowhere/cluster.yaml"})
    assert figures_of(missing) == JobFigures()
