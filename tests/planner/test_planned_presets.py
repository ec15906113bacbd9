"""The published BERT sizes, planned on every named cluster; they are not trained here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mics_core.planner.clusters import CLUSTER_NAMES, named_cluster
from mics_core.planner.footprint import usable_bytes
from mics_core.spec import JobSpec, parse_job_spec
from mics_core.spec.planning import plan_job, shape_by_formula

SIZES = ["bert-10b", "bert-15b", "bert-20b", "bert-50b"]
NUM_NODES = 32
VOCABULARY = 257


def job(preset: str) -> JobSpec:
    return parse_job_spec(
        {
            "name": preset,
            "model": {"preset": preset},
            "data": {"kind": "text", "paths": ["/data/*.txt"]},
            "training": {
                "sequence_length": 512,
                "global_batch_size": 8192,
                "micro_batch_size": "auto",
                "activation_checkpointing": "auto",
                "precision": "bf16",
                "steps": 10,
            },
            "partition_size": "auto",
            "groups": {"maximum": 16},
        }
    )


@pytest.mark.long
@pytest.mark.pure
@pytest.mark.parametrize("cluster", CLUSTER_NAMES)
def test_every_size_has_a_layout_that_fits_and_larger_ones_need_no_fewer_workers(
    cluster: str,
) -> None:
    profile = named_cluster(cluster, NUM_NODES)
    assert profile is not None
    smallest = []
    for preset in SIZES:
        spec = job(preset)
        model = shape_by_formula(spec, VOCABULARY)
        assert model is not None
        plan = plan_job(spec, model, profile)
        choice = plan.choice
        layout, memory = choice.layout, choice.prediction.memory
        assert memory.total <= usable_bytes(profile.memory_bytes, model)
        # AdamW in bf16 keeps 4 bytes each of parameter, gradient and two moments.
        states = 16 * model.parameters
        assert layout.partition_size * profile.memory_bytes > states
        assert layout.partition_size <= 8 or layout.partition_size % 8 == 0
        assert layout.num_groups * layout.partition_size <= profile.num_workers
        assert choice.prediction.samples_per_s > 0
        assert choice.reason.startswith(f"p = {layout.partition_size}, ")
        smallest.append(min(each.layout.partition_size for each in (choice, *plan.others)))
    assert smallest == sorted(smallest)
    assert smallest[-1] > smallest[0]


@pytest.mark.parametrize("preset", SIZES)
def test_a_published_size_that_is_built_on_the_meta_device_has_the_counted_parameters(
    preset: str,
) -> None:
    counting = pytest.importorskip("mics_core.engine.counting")
    built, formula = counting.count_shape(job(preset)), shape_by_formula(job(preset), VOCABULARY)
    assert formula is not None
    assert built == replace(formula, largest_block_parameters=formula.block.parameters)
