"""On CPUs messages take the processor from what is computed: what of them shows in a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planning import CLUSTER, FORWARD, MODEL, SLOW_MEMORY, layout, workload

from mics_core.planner import cost
from mics_core.planner.collectives import share_waited
from mics_core.planner.cost import predict
from mics_core.planner.profile import ClusterProfile, Link, Peaks
from mics_core.planner.strategy import Strategy

pytestmark = pytest.mark.pure


def test_on_cpus_messages_take_the_processor_by_the_peak_in_the_jobs_precision() -> None:
    peaks = Peaks(fp32=1e7, bf16=1e9)
    derived = replace(CLUSTER, peak_flops_per_s=peaks, memory_bytes_per_s=None)
    stated = replace(CLUSTER, peak_flops_per_s=1e7, memory_bytes_per_s=1e6)
    found = [predict(MODEL, each, layout(2), workload(16)).times for each in (derived, stated)]
    assert found[0] == found[1]


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
