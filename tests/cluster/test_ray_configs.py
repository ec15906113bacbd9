"""Ray Train's own configurations, as `MicsTrainer` reads them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from mics_core.cluster.ray_configs import configured_spec
from mics_core.errors import SpecificationError
from mics_core.spec import JobSpec, parse_job_spec


def spec(**changes: Any) -> JobSpec:
    job: dict[str, Any] = {
        "name": "configured",
        "model": {"family": "gpt2", "hidden_size": 8, "num_layers": 1, "num_heads": 1},
        "data": {"kind": "text", "paths": ["/data/*.txt"]},
        "training": {
            "sequence_length": 8,
            "global_batch_size": 24,
            "micro_batch_size": 1,
            "steps": 10,
        },
        "partition_size": 2,
        "groups": {"minimum": 1, "wanted": 2, "maximum": 3},
    }
    return parse_job_spec(job | changes)


def test_nothing_configured_changes_nothing() -> None:
    assert configured_spec(spec(), None, None) == spec()
    plain = RunConfig(failure_config=FailureConfig(), logging_config=LoggingConfig())
    for run in (RunConfig(), plain):
        assert configured_spec(spec(), None, run) == spec()


def test_workers_are_counted_in_partition_groups() -> None:
    fixed = configured_spec(spec(), ScalingConfig(num_workers=8), None).groups
    assert (fixed.minimum, fixed.wanted, fixed.maximum) == (1, 4, 4)
    fewer = configured_spec(spec(), ScalingConfig(num_workers=2), None).groups
    assert (fewer.minimum, fewer.wanted, fewer.maximum) == (1, 1, 3)
    elastic = configured_spec(spec(), ScalingConfig(num_workers=(4, 12)), None).groups
    assert (elastic.minimum, elastic.wanted, elastic.maximum) == (2, 6, 6)


def test_resources_are_those_of_a_worker() -> None:
    asked = ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 4, "fast": 1})
    resources = configured_spec(spec(), asked, None).resources
    assert (resources.cpus, resources.gpus, resources.custom) == (4.0, 1, {"fast": 1.0})


def test_a_run_has_a_name_and_a_folder_for_its_checkpoints() -> None:
    run = RunConfig(
        name="mine",
        storage_path="s3://bucket/runs/",
        checkpoint_config=CheckpointConfig(num_to_keep=5),
    )
    found = configured_spec(spec(), None, run)
    assert (found.name, found.checkpoint.keep) == ("mine", 5)
    assert found.checkpoint.directory == "s3://bucket/runs/mine"


@pytest.mark.parametrize(
    ("scaling", "run", "field"),
    [
        (ScalingConfig(num_workers=3), None, "scaling_config.num_workers"),
        (ScalingConfig(num_workers=(1, 4)), None, "scaling_config.num_workers"),
        (
            ScalingConfig(num_workers=2, label_selector={"zone": "a"}),
            None,
            "scaling_config.label_selector",
        ),
        (
            ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
            None,
            "scaling_config.placement_strategy",
        ),
        (
            ScalingConfig(num_workers=2, elastic_resize_monitor_interval_s=5.0),
            None,
            "scaling_config.elastic_resize_monitor_interval_s",
        ),
        (
            None,
            RunConfig(failure_config=FailureConfig(max_failures=3)),
            "run_config.failure_config",
        ),
        (
            None,
            RunConfig(logging_config=LoggingConfig(log_level="DEBUG")),
            "run_config.logging_config",
        ),
        (None, RunConfig(worker_runtime_env={"pip": ["x"]}), "run_config.worker_runtime_env"),
        (
            None,
            RunConfig(checkpoint_config=CheckpointConfig(checkpoint_score_attribute="loss")),
            "run_config.checkpoint_config.checkpoint_score_attribute",
        ),
    ],
)
def test_what_has_no_meaning_here_is_refused_with_a_remedy(
    scaling: ScalingConfig | None, run: RunConfig | None, field: str
) -> None:
    with pytest.raises(SpecificationError) as caught:
        configured_spec(spec(), scaling, run)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert problem.remedy


def test_a_chosen_partition_size_has_no_number_of_workers_yet() -> None:
    with pytest.raises(SpecificationError, match="partition_size is 'auto'"):
        configured_spec(spec(partition_size="auto"), ScalingConfig(num_workers=4), None)


def test_the_outcome_follows_the_rules_of_a_job() -> None:
    with pytest.raises(SpecificationError, match="micro-batches of a step"):
        configured_spec(spec(), ScalingConfig(num_workers=(2, 48)), None)
