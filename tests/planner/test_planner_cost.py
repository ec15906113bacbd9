"""Predictions against sums made by hand, and what must hold for any of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import BY_NODE, CLUSTER, HIERARCHICAL, MODEL, layout, workload

from mics_core.planner import cost
from mics_core.planner.collectives import share_waited
from mics_core.planner.cost import predict
from mics_core.planner.footprint import memory_of
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Layout, Memory, Prediction, Times
from mics_core.planner.profile import ClusterProfile, Link, Peaks
from mics_core.planner.shape import shape_of_transformer
from mics_core.planner.strategy import Strategy

pytestmark = pytest.mark.pure

FORWARD, HEAD = 2e-3, 1e-3  # one sample: a block, the root


SLOW_MEMORY = replace(CLUSTER, memory_bytes_per_s=1e6)


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


def test_on_cpus_messages_take_the_processor_by_the_peak_in_the_jobs_precision() -> None:
    peaks = Peaks(fp32=1e7, bf16=1e9)
    derived = replace(CLUSTER, peak_flops_per_s=peaks, memory_bytes_per_s=None)
    stated = replace(CLUSTER, peak_flops_per_s=1e7, memory_bytes_per_s=1e6)
    found = [predict(MODEL, each, layout(2), workload(16)).times for each in (derived, stated)]
    assert found[0] == found[1]


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


def test_on_cpus_what_messages_take_of_the_processor_shows_whatever_is_computed() -> None:
    # Kept parameters: one micro-batch gathers 5 units in forward and reduces 5 in backward, each of
    # which sends half of its bytes and copies as `collectives` says.
    endless = replace(SLOW_MEMORY, efficiency=1e-6)
    kept = layout(2, strategy=Strategy(reshard="never"))
    times = predict(MODEL, endless, kept, workload(2)).times
    block, root, sent = 4000, 1600, 27 / 2
    everything = 4 * block + root  # the links are faster than such a processor
    assert times.exposed_forward == pytest.approx((sent + 3) * everything / 1e6)
    assert times.exposed_backward == pytest.approx((sent + 5) * everything / 1e6)
    on_gpus = replace(endless, backend="nccl")
    hidden = predict(MODEL, on_gpus, kept, workload(2)).times
    assert hidden.exposed_forward == hidden.exposed_backward
    assert hidden.exposed_forward == pytest.approx(2 * 1e-4 + (block + root) / 2 / 1e6)


@pytest.fixture
def always_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links so slow that what processors feed them with is nothing beside them."""
    monkeypatch.setattr(cost, "share_waited", lambda *_: 1.0)


@pytest.mark.usefixtures("always_waits")
def test_on_cpus_a_group_takes_the_processor_and_the_wire_in_turn() -> None:
    # Two nodes of one worker: every byte crosses the wire; kept parameters, one micro-batch.
    slow = replace(SLOW_MEMORY, workers_per_node=1)
    kept = layout(2, strategy=Strategy(reshard="never"))
    times = predict(MODEL, slow, kept, workload(2)).times
    block, root = 4000, 1600

    def wire(num_bytes: int) -> float:
        return 1e-3 + num_bytes / 2 / 1e5

    def processor(num_bytes: int, copies: int) -> float:
        return (27 / 2 + copies) * num_bytes / 1e6

    forward = wire(root) + processor(root, 3) + 4 * (wire(block) + processor(block, 3))
    assert times.exposed_forward == pytest.approx(forward - 3 * FORWARD / 4)
    on_gpus = predict(MODEL, replace(slow, backend="nccl"), kept, workload(2)).times
    hidden = wire(root) + wire(block) + 3 * (wire(block) - FORWARD)
    assert on_gpus.exposed_forward == pytest.approx(hidden)


@pytest.mark.usefixtures("always_waits")
def test_on_cpus_the_second_hop_waits_for_what_the_group_takes_of_the_processor() -> None:
    def exposed(profile: ClusterProfile) -> float:
        kept = layout(2, 4, strategy=Strategy(reshard="never"))
        return predict(MODEL, profile, kept, workload(8)).times.exposed_second_hop

    # Three of the four blocks' buckets cross beside backward, the rest after it.
    wire = 6 * (1e-3 + 1e-2)
    tail = wire + 6 * (1e-3 + 4e-3)
    between = wire - 2 * FORWARD / 4
    found = exposed(replace(SLOW_MEMORY, memory_bytes_per_s=3e6))
    assert found == pytest.approx(tail + 3 * between)


def test_nobody_waits_for_a_link_that_takes_as_much_as_the_processors_can_feed_it() -> None:
    def link(bytes_per_s: float) -> ClusterProfile:
        return replace(SLOW_MEMORY, memory_bytes_per_s=27e5, inter_node=Link(bytes_per_s, 1e-3))

    # Two workers feed 10^5 bytes a second each; a byte that is sent costs as much as 27 moved.
    shares = [share_waited(link(rate), "fp32") for rate in (1e3, 5e4, 2e5, 1e9)]
    assert shares == [0.995, 0.75, 0.0, 0.0]
    flat = layout(4, strategy=Strategy())
    exposed = predict(MODEL, link(2e5), flat, workload(4)).times.exposed_forward
    moved = (27 * 3 / 4 + 2 * (1 + 1 / 4)) / 27e5  # of processors, for each byte of a unit
    assert exposed == pytest.approx(moved * (4 * 4000 + 1600))


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


def test_memory_by_part() -> None:
    # Largest in backward of the last block: two blocks and the root are gathered, both gradients
    # are whole, and the block's goes out; what comes in is added to the shard's sum.
    span = layout(4).span(2)
    found = memory_of(MODEL, layout(4, 2), workload(16), span)
    assert found.model_states == 4400 * 16 / 4
    assert found.gathered == (400 + 2 * 1000) * 4
    assert found.gradients == (400 + 1000) * 4 + 1000 * 4 + 1000 * 4 / 4
    assert found.activations == (4 * 100 + 50) * 4
    assert found.buckets == 2 * 1000 * 4 / 4
    assert found.copies == found.update == 0
    again = memory_of(MODEL, layout(4, is_checkpointed=True), workload(16), span)
    assert again.activations == (4 * 20 + 100 + 50) * 4


def test_memory_of_stages() -> None:
    span = layout(4).span(2)
    flat = memory_of(MODEL, layout(4), workload(16), span)
    staged = memory_of(MODEL, layout(4, strategy=HIERARCHICAL), workload(16), span)
    # Half of a block on its way in and out: between nodes there are columns of it.
    assert staged.gathered - flat.gathered == 1000 * 4 / 2
    assert staged.gradients - flat.gradients == 1000 * 4 / 2
    kept = memory_of(MODEL, layout(4, strategy=BY_NODE), workload(16), span)
    assert kept.gathered - flat.gathered == 4400 * 4 / 2
    # The sums of all units, and what is to be added to one of them, half a block for a quarter.
    assert kept.gradients - flat.gradients == 4400 * 4 / 2 + 1000 * 4 / 4
    whole = replace(HIERARCHICAL, reshard="never")
    never = memory_of(MODEL, layout(4, strategy=whole), workload(16), span)
    # The buffers of gathers are gone when there are gradients, which are larger.
    assert never.gathered == 4400 * 4
    assert never.gradients == staged.gradients


def test_one_worker_holds_the_gradients_of_what_is_outside_the_blocks() -> None:
    # Those of a tied weight wait for each other: the head's, the embedding's, and their sum.
    span = layout(1).span(2)
    alone = memory_of(MODEL, layout(1), workload(16), span)
    assert alone.gathered == alone.buckets == 0
    assert (alone.gradients, alone.activations) == (3 * 400 * 4, 0)
    longer = memory_of(MODEL, layout(1, micro_batch_size=2), workload(16), span)
    assert (longer.gradients, longer.activations) == (400 * 4, 2 * 450 * 4)


def test_one_worker_in_bf16_gathers_and_reduces_to_itself() -> None:
    in_bf16 = workload(16, precision="bf16")
    found = memory_of(MODEL, layout(1), in_bf16, layout(1).span(2))
    assert found.model_states == 4400 * 16
    # One block, nothing ahead; its gradient in fp32, a copy that is divided, and the sum so far.
    assert found.gathered == (400 + 1000) * 2
    assert found.gradients == (400 + 1000) * 2 + 3 * 1000 * 4


def test_shards_are_cast_before_they_are_gathered() -> None:
    in_bf16 = workload(16, precision="bf16")
    found = memory_of(MODEL, layout(4), in_bf16, layout(4).span(2))
    assert found.gathered == (400 + 2 * 1000) * 2 + 1000 / 4 * 2


@pytest.mark.parametrize(("precision", "num_bytes"), [("fp32", 12), ("bf16", 12), ("fp64", 24)])
def test_the_loss_needs_three_copies_of_the_logits(precision: Any, num_bytes: int) -> None:
    # 10 tokens of 5000 words: far more than anything that comes later.
    wide = replace(MODEL, logits=50_000)
    compute = {"fp32": 4, "bf16": 2, "fp64": 8}[precision]
    asked = workload(16, precision=precision)
    for size in (1, 4):
        found = memory_of(wide, layout(size), asked, layout(size).span(2))
        assert found.activations == 450 * compute + 50_000 * num_bytes
    # Blocks are computed again when the logits are gone.
    again = layout(1, is_checkpointed=True)
    found = memory_of(wide, again, asked, again.span(2))
    assert found.activations == (4 * 20 + 50) * compute + 50_000 * num_bytes


def test_the_heads_gradient_and_that_of_the_logits_are_held_at_once() -> None:
    # 50 logits a sample need 600 bytes for the loss, then 200 beside 1600 of the head's gradient.
    few, twice = replace(MODEL, logits=50), layout(1, micro_batch_size=2)
    found = memory_of(few, twice, workload(16), twice.span(2))
    assert (found.gradients, found.activations) == (1600, 2 * (450 * 4 + 50 * 4))


def test_on_cpus_copies_of_the_states_are_held_too() -> None:
    def copies(size: int, groups: int = 1, backend: Any = "gloo", **changes: Any) -> float:
        found = layout(size, groups)
        return memory_of(MODEL, found, workload(**changes), found.span(2), backend).copies

    # Parameter and two moments; of SGD the parameter alone.
    assert copies(2) == 0
    assert copies(2, writes_checkpoints=True) == 4400 * 12 / 2
    assert copies(2, writes_checkpoints=True, optimizer="sgd") == 4400 * 4 / 2
    assert copies(2, writes_checkpoints=True, is_elastic=True) == 2 * 4400 * 12 / 2
    # There may be two groups for a while, which have half of it each.
    assert copies(2, 4, is_elastic=True, minimum_groups=2) == 4400 * 12 / 4
    assert copies(2, 1, is_elastic=True, minimum_groups=2) == 4400 * 12 / 2
    assert copies(2, backend="nccl", writes_checkpoints=True, is_elastic=True) == 0


def test_one_order_of_additions_keeps_sums() -> None:
    def memory(batch: int, groups: int = 1, **changes: Any) -> Memory:
        found = layout(1, groups)
        asked = workload(batch, determinism="bitwise", **changes)
        return memory_of(MODEL, found, asked, found.span(2))

    plain = memory_of(MODEL, layout(1), workload(8), layout(1).span(2))
    # Of eight micro-batches sums of four, two and one wait for the last. Its own comes on top when
    # the passes have let go of 4800 bytes.
    one = memory(8)
    assert one.gradients - plain.gradients == 3 * 17600
    assert one.update == 17600 - 4800
    # Two groups of four exchange the sum of all their four, which is sent and received whole.
    two = memory(8, 2)
    assert two.gradients - plain.gradients == 2 * 17600
    assert two.update == 17600 + 2 * 17600 - 4800
    assert two.buckets == 0
    # Three groups take 3, 3 and 2 micro-batches; the second has the nodes 3 and 4 to 5.
    assert memory(8, 3).update == 17600 + 2 * 2 * 17600 - 4800
    # SGD makes a gradient more in each step.
    assert memory(8, optimizer="sgd").update == 2 * 17600 - 4800


def test_the_update_needs_a_gradient_more_where_the_passes_leave_no_room() -> None:
    alone = memory_of(MODEL, layout(1), workload(), layout(1).span(2))
    assert alone.update == 4400 * 4 - alone.gradients - alone.activations
    assert memory_of(MODEL, layout(4), workload(), layout(4).span(2)).update == 0
    offloaded = workload(offload_optimizer=True)
    assert memory_of(MODEL, layout(1), offloaded, layout(1).span(2)).update == 0


def test_on_cpus_two_scatters_and_what_one_receives_are_held_at_once() -> None:
    inside = layout(2).span(2)
    found = memory_of(MODEL, layout(2), workload(), inside, "gloo")
    assert found.gradients == (400 + 1000) * 4 + 3 * 1000 * 4
    # Around a ring over nodes two parts of the block come in turn.
    over_nodes = layout(4).span(2)
    found = memory_of(MODEL, layout(4), workload(), over_nodes, "gloo")
    assert found.gradients == (400 + 1000) * 4 + (2 + 2 / 4) * 1000 * 4


def test_memory_is_what_was_measured_to_a_twentieth() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    rows = json.loads((results / "memory.json").read_text(encoding="utf-8"))
    model = json.loads((results / "memory.meta.json").read_text(encoding="utf-8"))["model"]
    shape = shape_of_transformer(
        TransformerSizes(**model, intermediate_size=4 * model["hidden_size"], sequence_length=64)
    )
    assert {row["partition_size"] for row in rows} == {1, 2, 4}
    for row in rows:
        assert shape.parameters == row["num_parameters"]
        found = layout(row["partition_size"])
        asked = workload(row["partition_size"], bucket_bytes=4 << 20)
        modelled = memory_of(shape, found, asked, found.span(4), "gloo")
        measured = max(row["peak_building_bytes"], row["peak_training_bytes"])
        assert 0.95 * measured <= modelled.total <= 1.10 * measured, row


def test_offloaded_states_leave_the_gradient_and_what_is_fetched() -> None:
    offloaded = workload(16, offload_optimizer=True, precision="bf16")
    found = memory_of(MODEL, layout(4), offloaded, layout(4).span(2))
    assert found.model_states == 4400 * 4 / 4
    # A block's shard as it comes, and in bf16 as it is gathered.
    assert found.gathered == (400 + 2 * 1000) * 2 + 1000 / 4 * (4 + 2)


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


@given(st.sampled_from([2, 4, 6]), st.sampled_from([Strategy(), Strategy(reshard="never")]))
def test_memory_falls_with_the_partition_size(size: int, strategy: Strategy) -> None:
    def total(partition_size: int) -> float:
        found = layout(partition_size, strategy=strategy)
        return memory_of(MODEL, found, workload(), found.span(2)).total

    assert total(size + 2) < total(size)
