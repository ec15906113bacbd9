"""What a job and a cluster become for the planner, and what the plan then says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_spec_rules import job

from mics_core.errors import SpecificationError
from mics_core.planner.clusters import named_cluster
from mics_core.planner.plan import Plan
from mics_core.planner.profile import ClusterProfile, Peaks
from mics_core.planner.scaling import scale
from mics_core.spec import parse_job_spec
from mics_core.spec.planning import choices_of, plan_job, shape_by_formula

pytestmark = pytest.mark.pure


def cluster(name: str) -> ClusterProfile:
    found = named_cluster(name)
    assert found is not None
    return found


def plan(profile: ClusterProfile, precision: str = "fp32", **changes: Any) -> Plan:
    model = {"preset": "gpt2-small"}
    training = {
        "sequence_length": 1024,
        "global_batch_size": 512,
        "micro_batch_size": "auto",
        "steps": 4,
        "precision": precision,
    }
    spec = parse_job_spec(job(model=model, training=training, **changes))
    shape = shape_by_formula(spec, 257)
    assert shape is not None
    return plan_job(spec, shape, profile)


@pytest.mark.parametrize(("precision", "tflops"), [("fp32", 19.5), ("fp64", 19.5), ("bf16", 312)])
def test_no_plan_is_faster_than_the_peak_in_the_jobs_precision(
    precision: str, tflops: float
) -> None:
    found = plan(cluster("p4d.24xlarge"), precision).choice.prediction
    assert 0.3 * tflops < found.model_tflops < 0.56 * tflops
    assert found.mfu == pytest.approx(found.model_tflops / tflops)


def test_scaling_goes_by_the_peak_in_the_jobs_precision() -> None:
    profile, speeds = cluster("p4d.24xlarge"), {}
    for precision in ("fp32", "bf16"):
        spec = parse_job_spec(
            job(model={"preset": "gpt2-small"}, training__precision=precision,
                training__sequence_length=512, training__global_batch_size=64)
        )  # fmt: skip
        shape = shape_by_formula(spec, 257)
        assert shape is not None
        (point,) = scale(choices_of(spec, shape, profile), [8], is_weak=True)
        assert not isinstance(point.mics, str)
        assert not isinstance(point.full, str)
        speeds[precision] = (point.mics.model_tflops, point.full.model_tflops)
    assert max(speeds["fp32"]) < 19.5 < min(speeds["bf16"])


def test_a_plan_says_that_the_gpus_lack_the_jobs_precision() -> None:
    found = plan(cluster("p3dn.24xlarge"), "bf16")
    assert "workers of p3dn.24xlarge have no matrix units for bf16" in found.reason
    assert "as fast as fp32 at best" in found.reason
    assert found.choice.prediction.model_tflops < 15.7
    for name, precision in (("p3dn.24xlarge", "fp32"), ("p4d.24xlarge", "bf16")):
        assert "matrix units" not in plan(cluster(name), precision).reason


def test_a_precision_whose_peak_is_not_known_is_refused_with_the_remedy() -> None:
    lab = replace(cluster("p4d.24xlarge"), name="lab", peak_flops_per_s=Peaks(bf16=312e12))
    assert plan(lab, "bf16").choice.prediction.mfu > 0
    with pytest.raises(SpecificationError) as caught:
        plan(lab, "fp32")
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("training.precision", "'fp32'")
    assert problem.rule == "the peak of a worker of lab in fp32 is not known."
    assert "Add `fp32` to peak_tflops" in problem.remedy
