"""Predicted times and bytes against sums made by hand, and what must hold for any of them."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import (
    BY_NODE,
    CLUSTER,
    FORWARD,
    HEAD,
    HIERARCHICAL,
    MODEL,
    SLOW_MEMORY,
    layout,
    workload,
)

from mics_core.planner.cost import predict
from mics_core.planner.prediction import Layout, Prediction, Times
from mics_core.planner.profile import ClusterProfile, Peaks
from mics_core.planner.strategy import Strategy

pytestmark = pytest.mark.pure


def run(size: int, groups: int = 1, batch: int = 16, **changes: object) -> Prediction:
    return predict(MODEL, CLUSTER, layout(size, groups, **changes), workload(batch))


def test_computing_is_operations_over_rate() -> None:
    times = run(1, batch=16).times
    assert times.forward == pytest.approx(16 * (4 * FORWARD + HEAD))
    assert times.backward == pytest.approx(2 * times.forward)
    assert times.recompute == 0
    again = run(1, batch=16, is_checkpointed=True).times
    assert again.recompute == pytest.approx(16 * 4 * FORWARD)


def test_a_measured_time_of_an_operation_goes_before_the_peak() -> None:
    measured = replace(CLUSTER, seconds_per_flop_measured=1e-8)
    times = predict(MODEL, measured, layout(1), workload(16)).times
    assert times.forward == pytest.approx(16 * (4e6 + 5e5) * 1e-8)


PEAKS = Peaks(fp32=1e9, bf16=16e9)


def test_computing_and_mfu_go_by_the_peak_in_the_jobs_precision() -> None:
    profile = replace(CLUSTER, peak_flops_per_s=PEAKS)
    single, half = (
        predict(MODEL, profile, layout(1), workload(16, precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert single.times.forward == pytest.approx(run(1).times.forward)
    assert half.times.forward == pytest.approx(single.times.forward / 16)
    assert single.mfu == pytest.approx(1e12 * single.model_tflops / 1e9)
    assert half.mfu == pytest.approx(1e12 * half.model_tflops / 16e9)
    with pytest.raises(ValueError, match="the peak of test in fp64 is not known"):
        predict(MODEL, profile, layout(1), workload(16, precision="fp64"))


@pytest.mark.parametrize(
    ("backend", "peak", "precision", "bytes_per_s"),
    [
        ("nccl", 1e9, "fp32", 1e9 / 200),
        ("nccl", PEAKS, "bf16", 16e9 / 200),
        ("nccl", PEAKS, "fp32", 1e9 / 15),
        ("gloo", 1e9, "fp64", 1e9 / 10),
        ("gloo", PEAKS, "fp32", 1e9 / 10),
        ("gloo", Peaks(fp64=1e9), "fp64", 1e9 / 5),
    ],
)
def test_a_rate_of_memory_that_is_not_known_follows_the_peak_in_the_jobs_precision(
    backend: Any, peak: float | Peaks, precision: Any, bytes_per_s: float
) -> None:
    profile = replace(CLUSTER, backend=backend, peak_flops_per_s=peak, memory_bytes_per_s=None)
    asked = workload(16, precision=precision)
    update_s = predict(MODEL, profile, layout(1), asked).times.optimizer
    num_bytes = 7 * (8 if precision == "fp64" else 4) * 4400
    assert update_s == pytest.approx(num_bytes / bytes_per_s)


def test_the_busiest_group_decides_the_micro_batches() -> None:
    assert run(1, 3, batch=16).micro_batches == 6
    assert run(2, 4, batch=16).micro_batches == 2


def test_a_single_worker_exposes_nothing() -> None:
    prediction = run(1)
    assert prediction.times.exposed == 0
    assert prediction.traffic.total == 0
    assert prediction.times.summary == 0


def test_the_update_moves_seven_numbers_of_each_parameter() -> None:
    # AdamW: parameter, gradient, two moments in; all but the gradient out; 4 bytes, 1 MB/s.
    found = predict(MODEL, SLOW_MEMORY, layout(2), workload()).times.optimizer
    assert found == pytest.approx(7 * 4 * 4400 / 2 / 1e6)
    sgd = workload(16, optimizer="sgd")
    found = predict(MODEL, SLOW_MEMORY, layout(1), sgd).times.optimizer
    assert found == pytest.approx(3 * 4 * 4400 / 1e6)


def test_gathers_inside_a_node_hide_behind_the_computing_of_one_unit() -> None:
    # A block's gather and scatter take 2.1 ms each, the root's 0.9; one micro-batch of 2 samples.
    times = run(2, batch=2).times
    block, root = 1e-4 + 2e-3, 1e-4 + 8e-4
    assert times.gather_forward == pytest.approx(4 * block + root)
    assert times.gather_backward == times.scatter == pytest.approx(4 * block + root)
    assert times.exposed_forward == pytest.approx(root + block + 3 * (block - FORWARD))
    last_gather = block - 2 * HEAD
    between = 3 * (2 * block - 2 * FORWARD)
    assert times.exposed_backward == pytest.approx(2 * root + last_gather + block + between)
    # Two exchanges inside the group, of one round each.
    assert times.summary == pytest.approx(2 * 1e-4)


def test_a_longer_computation_hides_more() -> None:
    short, long = run(2, batch=16), run(2, batch=16, micro_batch_size=8)
    assert long.times.exposed < short.times.exposed
    assert long.times.compute == pytest.approx(short.times.compute)


def test_bytes_of_a_flat_group_over_nodes() -> None:
    # 4 workers on 2 nodes, 4 micro-batches; rings take 3/4 of 17600 bytes out of a node.
    traffic = run(4, batch=16).traffic
    assert traffic.gather_forward == traffic.gather_backward == pytest.approx(4 * 13200)
    assert traffic.scatter == pytest.approx(4 * 13200)
    assert traffic.second_hop == 0


def test_bytes_of_a_hierarchical_group_over_nodes() -> None:
    traffic = run(4, batch=16, strategy=HIERARCHICAL).traffic
    assert traffic.gather_forward == traffic.gather_backward == pytest.approx(4 * 8800)
    assert traffic.scatter == pytest.approx(4 * 8800)


def test_what_is_kept_by_node_crosses_nodes_once_a_step() -> None:
    traffic = run(4, batch=16, strategy=BY_NODE).traffic
    assert traffic.gather_forward == pytest.approx(8800)
    assert traffic.gather_backward == 0
    assert traffic.scatter == pytest.approx(8800)


def test_parameters_that_are_kept_are_gathered_once_a_step() -> None:
    strategy = replace(HIERARCHICAL, reshard="never")
    found = run(4, batch=16, strategy=strategy)
    assert found.traffic.gather_forward == pytest.approx(8800)
    assert found.traffic.gather_backward == 0
    assert found.times.gather_backward == 0


def test_the_second_hop_crosses_nodes_once_a_step_whatever_the_batch() -> None:
    for batch in (16, 64):
        # Four groups of one node each: 2 · 3/4 of 17600 bytes.
        assert run(2, 4, batch=batch).traffic.second_hop == pytest.approx(26400)


def test_the_last_bucket_of_the_second_hop_shows_whole() -> None:
    slow_compute = replace(CLUSTER, efficiency=1e-4)
    times = predict(MODEL, slow_compute, layout(1, 8), workload(16)).times
    block = 2 * (1e-4 + 2e-3) + 6 * (1e-3 + 1e-2)
    root = 2 * (1e-4 + 8e-4) + 6 * (1e-3 + 4e-3)
    assert times.second_hop == pytest.approx(4 * block + root)
    assert times.exposed_second_hop == pytest.approx(block + root)
    one_bucket = workload(16, bucket_bytes=10**6)
    whole = predict(MODEL, slow_compute, layout(1, 8), one_bucket).times
    assert whole.exposed_second_hop == pytest.approx(whole.second_hop)
    assert whole.second_hop < times.second_hop


def test_parts_add_up_to_the_step() -> None:
    found = run(4, 2, strategy=HIERARCHICAL)
    times = found.times
    parts = times.forward + times.recompute + times.backward + times.optimizer + times.summary
    shown = times.exposed_forward + times.exposed_backward + times.exposed_second_hop
    assert found.step_s == pytest.approx(parts + shown)
    assert found.samples_per_s == pytest.approx(16 / found.step_s)
    assert found.tokens_per_s == pytest.approx(10 * found.samples_per_s)
    flops = 3 * 4.5e6 * 16 / found.step_s / 8
    assert found.model_tflops == found.hardware_tflops == pytest.approx(flops / 1e12)
    assert found.mfu == pytest.approx(flops / 1e9)


def test_operations_that_are_done_again_count_for_the_hardware_alone() -> None:
    found = run(1, is_checkpointed=True)
    assert found.hardware_tflops / found.model_tflops == pytest.approx((3 * 4.5 + 4) / (3 * 4.5))


ON_GPUS = replace(CLUSTER, backend="nccl", host_bytes_per_s=1e5)


def offloading(size: int, **changes: Any) -> tuple[Times, Times]:
    """The same step with the states on the device and on the host."""
    found = layout(size, **changes)
    there, here = (
        predict(MODEL, ON_GPUS, found, workload(2 * size, offload_optimizer=is_off)).times
        for is_off in (False, True)
    )
    return there, here


def test_offload_copies_shards_to_each_gather_and_gradients_from_each_scatter() -> None:
    # Two micro-batches; a shard of the model is 8800 bytes, 88 ms at 100 kB/s.
    kept, offloaded = offloading(2)
    assert offloaded.gather_forward - kept.gather_forward == pytest.approx(2 * 0.088)
    assert offloaded.gather_backward - kept.gather_backward == pytest.approx(2 * 0.088)
    assert offloaded.scatter - kept.scatter == pytest.approx(2 * 0.088)
    # The gradient once more, then AdamW's seven numbers for one of it.
    assert offloaded.optimizer == pytest.approx((1 + 7) * 0.088)
    kept, offloaded = offloading(2, strategy=Strategy(reshard="never"))
    assert offloaded.gather_forward - kept.gather_forward == pytest.approx(0.088)
    assert offloaded.gather_backward == kept.gather_backward == 0


def test_one_worker_waits_for_what_it_fetches_and_hides_what_it_sends_back() -> None:
    kept, offloaded = offloading(1)
    fetched, root, block = 2 * 0.176, 0.016, 0.04
    assert kept.exposed_forward == 0
    assert offloaded.exposed_forward == pytest.approx(fetched)
    # Of each block's gradient 40 ms less a backward of 4; the last and the root's whole.
    sent = 2 * (3 * (block - 2 * FORWARD) + block + root)
    assert offloaded.exposed_backward == pytest.approx(fetched + sent)


def test_a_gpus_gradient_crosses_groups_by_way_of_the_hosts() -> None:
    """A bucket hides as long as its slowest part takes, and shows all three at the end."""
    found = layout(2, 4)
    free = replace(ON_GPUS, host_bytes_per_s=math.inf)
    for_free, by_way = (predict(MODEL, c, found, workload(16)).times for c in (free, ON_GPUS))
    # The last bucket and the root's: shards of 2000 and 800 bytes, 20 and 8 ms each way.
    inside = replace(ON_GPUS, intra_node=replace(ON_GPUS.intra_node, bandwidth_bytes_per_s=1e5))
    slower = predict(MODEL, replace(inside, host_bytes_per_s=math.inf), found, workload(16)).times
    assert by_way.exposed_second_hop == pytest.approx(slower.exposed_second_hop + 2 * 0.028)
    assert by_way.second_hop == pytest.approx(slower.second_hop)  # the links are slower than copies
    assert by_way.second_hop >= for_free.second_hop
    slow_copies = predict(MODEL, replace(ON_GPUS, host_bytes_per_s=1e3), found, workload(16)).times
    assert slow_copies.second_hop == pytest.approx(8.8)
    alone = predict(MODEL, ON_GPUS, layout(2), workload(16)).times
    assert alone.second_hop == alone.exposed_second_hop == 0


def test_on_cpus_there_is_nothing_to_offload_to() -> None:
    off = workload(16, offload_optimizer=True)
    assert predict(MODEL, CLUSTER, layout(2), off).times == run(2).times


def test_one_order_of_additions_hides_nothing_and_sends_the_nodes_of_a_tree() -> None:
    asked = workload(16, determinism="bitwise")
    slow_memory = replace(CLUSTER, memory_bytes_per_s=1e6)
    # Eight groups of one worker, two on each of four nodes, two micro-batches each: one node.
    found = predict(MODEL, slow_memory, layout(1, 8), asked)
    # To each of the six elsewhere an eighth, from two workers; then the sum around a ring.
    sent = (2 * 6 / 8 + 7 / 8) * 17600
    assert found.traffic.second_hop == pytest.approx(sent)
    wire = sent / 1e5 + 2 * 7 * 1e-3
    sums = 2 * 5 * 17600 / 1e6
    assert found.times.second_hop == found.times.exposed_second_hop
    assert found.times.second_hop == pytest.approx(wire + sums)
    # Runs of 16 over 6: some group ends with as many as 2 nodes.
    more = predict(MODEL, slow_memory, layout(1, 6), asked)
    assert more.traffic.second_hop == pytest.approx((2 * 2 * 4 / 6 + 5 / 6) * 17600)
    alone = predict(MODEL, slow_memory, layout(2, 1), asked)
    assert alone.traffic.second_hop == 0
    assert alone.times.second_hop == pytest.approx(8 * 5 * 8800 / 1e6)


def test_one_order_of_additions_reduces_each_micro_batch_as_the_last() -> None:
    asked = workload(16, determinism="bitwise")
    found = predict(MODEL, CLUSTER, layout(4, strategy=BY_NODE), asked)
    assert found.traffic.scatter == pytest.approx(4 * 8800)


def test_a_partition_size_between_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of the 2 workers"):
        run(3)


LAYOUTS = st.builds(
    Layout,
    st.sampled_from([1, 2, 4, 6, 8]),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([Strategy(), Strategy(reshard="never"), HIERARCHICAL, BY_NODE]),
    st.booleans(),
)


@given(LAYOUTS, st.integers(1, 256), st.sampled_from(["gloo", "nccl"]))
def test_no_part_is_negative(found: Layout, batch: int, backend: str) -> None:
    profile: ClusterProfile = replace(CLUSTER, backend=backend)  # type: ignore[arg-type]
    prediction = predict(MODEL, profile, found, workload(batch))
    for part in (prediction.memory, prediction.traffic, prediction.times):
        assert all(value >= 0 for value in asdict(part).values()), part
    times = prediction.times
    hidden = times.gather_forward + times.gather_backward + times.scatter + times.second_hop
    assert times.exposed <= hidden * (1 + 1e-9)
    assert prediction.step_s <= times.without_overlap * (1 + 1e-9)


@given(LAYOUTS, st.floats(1.0, 100.0))
def test_a_faster_network_never_slows_a_step(found: Layout, factor: float) -> None:
    link = CLUSTER.inter_node
    faster = replace(CLUSTER, inter_node=replace(link, bandwidth_bytes_per_s=1e5 * factor))
    before = predict(MODEL, CLUSTER, found, workload()).step_s
    assert predict(MODEL, faster, found, workload()).step_s <= before * (1 + 1e-9)
