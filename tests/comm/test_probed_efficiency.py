"""The share of the peak that a probe finds foretells how long a model computes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mics_core.comm.measured import ProbeSettings, cluster_findings
from mics_core.comm.probe_block import BlockSizes, ProbeBlock
from mics_core.comm.probing import measure_cluster
from mics_core.engine.models import build_meta_model
from mics_core.engine.sharding import ShardingOptions, shard_model
from mics_core.planner.cost import predict
from mics_core.planner.prediction import Layout, Workload
from mics_core.spec.cluster import LinkSpec
from mics_core.spec.planning import profile_of, shape_by_formula
from tests.engine.jobs import small_job
from tests.engine.worker_pool import WorkerPool, running_pool

STATED = LinkSpec(bandwidth_gbit_per_s=10.0, latency_us=50.0)
SETTINGS = ProbeSettings(message_bytes=(1024, 4096), repetitions=2, window_s=0.001, compute_s=0.5)
SAMPLES, ROUNDS = 4, 5


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with running_pool(1) as pool:
        yield pool


def predicted_and_measured_s() -> tuple[float, float]:
    """Probe this process; compute micro-batches of a model, whose time is foretold by it."""
    device = torch.device("cpu")
    report = measure_cluster(("node",), device, SETTINGS)
    found = cluster_findings(report, name="here", memory_gib=1.0, inter_node=STATED)
    spec = small_job(
        "unread.txt",
        model={"family": "gpt2", "hidden_size": 256, "num_layers": 6, "num_heads": 4},
        training__sequence_length=128,
        training__global_batch_size=SAMPLES,
        training__micro_batch_size=SAMPLES,
    )
    shape = shape_by_formula(spec, 257)
    assert shape is not None
    profile = replace(profile_of(found.spec, "gloo"), num_nodes=1, workers_per_node=1)
    workload = Workload(SAMPLES, precision="fp32")
    foretold_s = predict(shape, profile, Layout(1, 1, SAMPLES), workload).times.compute
    model = shard_model(build_meta_model(spec), None, ShardingOptions(device)).module
    ids = torch.randint(257, (SAMPLES, 128))
    times_s = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        logits = model(input_ids=ids).logits
        functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        times_s.append(time.perf_counter() - start)
    return foretold_s, statistics.median(times_s[1:])


def test_a_probe_foretells_how_long_a_small_model_computes(
    pool: WorkerPool,
) -> None:
    # Three times in turn: other work on the machine comes and goes between probe and model.
    pairs = [pool.run(predicted_and_measured_s)[0] for _ in range(3)]
    ratio = statistics.median(predicted_s / measured_s for predicted_s, measured_s in pairs)
    assert 0.4 < ratio < 2.5, pairs


def test_operations_of_the_block_are_those_of_its_matrices_and_of_attention() -> None:
    sizes = BlockSizes(hidden_size=8, num_heads=2, sequence_length=5, num_samples=3)
    block = ProbeBlock(sizes)
    matrices = sum(each.numel() for each in block.parameters() if each.dim() == 2)
    attention = 4 * 5 * 5 * 8
    assert sizes.flops == 3 * 3 * (2 * 5 * matrices + attention)
    values = torch.randn(3, 5, 8)
    assert block(values).shape == values.shape
