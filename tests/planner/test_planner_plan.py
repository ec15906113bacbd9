"""Which layout is chosen, why, and why the others were not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import CLUSTER, MODEL, choices, workload

from mics_core.errors import BrokenRule
from mics_core.planner.candidates import Choices, Refused, candidates, num_groups_of
from mics_core.planner.collectives import Span
from mics_core.planner.cost import predict
from mics_core.planner.footprint import memory_of, usable_bytes
from mics_core.planner.layout import ClusterShape, NodeShape
from mics_core.planner.plan import NoPlan, Plan, plan_layout
from mics_core.planner.prediction import Layout
from mics_core.planner.profile import Link
from mics_core.planner.scaling import scale, worker_counts
from mics_core.planner.words import described

pytestmark = pytest.mark.pure


def planned(asked: Choices) -> Plan:
    found = plan_layout(asked)
    assert isinstance(found, Plan), found
    return found


def refused(asked: Choices) -> NoPlan:
    found = plan_layout(asked)
    assert isinstance(found, NoPlan), found
    return found


def layouts(asked: Choices) -> list[Layout]:
    return [found for found in candidates(asked) if isinstance(found, Layout)]


def test_a_replica_that_fits_one_worker_is_not_partitioned_for_a_fast_network() -> None:
    fast = Link(1e12, 0.0)
    found = planned(
        choices(micro_batch_size=1, intra_node=fast, inter_node=fast, memory_bytes_per_s=1e12)
    )
    assert found.choice.layout.partition_size == 1
    assert found.choice.layout.num_groups == 8
    assert found.reason.startswith("p = 1, 8 groups, micro-batch 1 is ")
    assert found.reason.endswith(" a worker.")


def test_a_plan_for_more_groups_than_the_job_asks_for_says_how_to_ask() -> None:
    many = planned(choices(micro_batch_size=1, asks_for_one_group=True))
    assert many.choice.layout.num_groups > 1
    assert many.reason.endswith(
        " a worker; as it stands the job asks for one group: set groups.wanted, or groups.maximum"
        f" to scale later, for more, up to {many.choice.layout.num_groups}."
    )
    assert many.choice.layout == planned(choices(micro_batch_size=1)).choice.layout
    whole = planned(choices(micro_batch_size=1, partition_size=8, asks_for_one_group=True))
    assert "asks for one group" not in whole.reason


def test_a_slow_network_keeps_the_second_hop_small() -> None:
    # One sample each: the gradient of a larger group goes out over fewer, smaller rings.
    found = planned(choices(micro_batch_size=1, batch=8))
    assert found.choice.layout.partition_size > 1


def test_the_choice_is_the_fastest_up_to_a_tie_of_three_per_cent() -> None:
    found = planned(choices(micro_batch_size="auto", activation_checkpointing="auto"))
    everything = [found.choice, *found.others]
    fastest = min(each.score for each in everything)
    tied = [each for each in everything if each.score <= 1.03 * fastest]
    assert found.choice in tied
    smallest = min(each.layout.partition_size for each in tied)
    assert found.choice.layout.partition_size == smallest
    scores = [each.score for each in found.others]
    assert scores == sorted(scores)


def test_of_layouts_about_as_fast_the_one_that_sends_less_is_taken() -> None:
    # Routes hardly differ in time where nearly all of it is computing, but in bytes by far.
    found = planned(choices(micro_batch_size=1, partition_size=4, efficiency=1e-3))
    chosen = found.choice.prediction
    assert chosen.traffic.total == pytest.approx(
        min(each.prediction.traffic.total for each in found.others)
    )
    louder = [each for each in found.others if each.score <= 1.03 * found.choice.score]
    assert any("the choice sends less out of a node" in each.reason for each in louder)


def test_every_layout_that_was_not_chosen_says_why() -> None:
    found = planned(choices(memory_bytes=100_000, micro_batch_size="auto"))
    assert found.others
    assert found.refused
    for other in found.others:
        assert other.reason.endswith(".")
        if other.score > 1.03 * found.choice.score:
            assert "slower than the choice by" in other.reason
    for each in found.refused:
        assert each.reason.endswith("."), each
        assert each.what


def test_a_lack_of_memory_names_the_parts() -> None:
    short = choices(memory_bytes=50_000, micro_batch_size=2, partition_size=1)
    found = refused(short)
    # 70400 bytes of states, 900 numbers of activations, 1600 bytes of the head's gradient, two
    # buckets of 4000.
    assert found.refused[0].reason == (
        "It needs 81.6 KiB (68.8 KiB of model states at p = 1 + 9.38 KiB of gathered units,"
        " gradients and update + 3.52 KiB of activations) a worker of 43.9 KiB usable."
    )
    assert found.problem.value == "partition_size 1 on test with 43.9 KiB usable a worker"
    assert "the layout that comes closest (p = 1, 8 groups, micro-batch 2" in found.problem.rule
    assert "Give each worker at least" in found.problem.remedy
    assert "activation_checkpointing" in found.problem.remedy


def test_copies_of_the_states_are_named_where_memory_is_short() -> None:
    short = choices(memory_bytes=50_000, micro_batch_size=1, partition_size=2)
    elastic = replace(short.workload, is_elastic=True)
    found = refused(replace(short, workload=elastic))
    assert "of activations + 25.8 KiB of copies for others) a worker" in found.refused[0].reason


def test_too_little_memory_for_a_replica_takes_a_larger_group() -> None:
    found = planned(choices(memory_bytes=80_000, micro_batch_size=1))
    assert found.choice.layout.partition_size > 1
    causes = {each.cause for each in found.refused if each.partition_size == 1}
    assert causes == {"memory"}


def test_a_size_between_nodes_is_refused_with_the_remedy() -> None:
    found = refused(choices(partition_size=3, micro_batch_size=1))
    assert "whole nodes of equal size" in found.problem.rule
    assert found.problem.remedy == "Choose 2 or 4, leave it at 'auto', or add nodes."


def test_a_batch_that_does_not_divide_is_refused_with_the_remedy() -> None:
    found = refused(choices(partition_size=2, micro_batch_size=3))
    assert found.problem.rule == (
        "no layout suits the batch: the global batch of 16 is no multiple of 2 × 3 samples."
    )
    assert "training.global_batch_size" in found.problem.remedy


def test_a_batch_that_keeps_out_what_the_memory_allows_is_named_beside_the_memory() -> None:
    # p = 6 fits the memory and p = 4 does not; 20 samples are no multiple of 6, and 4 too few.
    for batch in (20, 4):
        short = choices(batch=batch, memory_bytes=45_000, micro_batch_size="auto")
        found = refused(short)
        assert "memory" in {each.cause for each in found.refused if each.partition_size == 4}
        assert found.problem.value.endswith("usable a worker")
        assert found.problem.rule == (
            f"memory and cluster allow p = 6, but the global batch of {batch} is no multiple of"
            " 6 × 1 samples."
        )
        assert found.problem.remedy.startswith("Change training.global_batch_size, ")
        assert ", or give each worker at least " in found.problem.remedy
        assert isinstance(plan_layout(replace(short, workload=workload(24))), Plan)


def test_micro_batches_that_do_not_divide_the_batch_are_one_refusal_a_size() -> None:
    asked = choices(batch=20, micro_batch_size="auto")
    found = [each for each in candidates(asked) if isinstance(each, Refused)]
    told = {each.partition_size: each for each in found if each.cause == "batch"}
    assert len(told) == sum(each.cause == "batch" for each in found)
    assert {size: each.what for size, each in told.items()} == {
        1: "p = 1, micro-batches 8, 16",
        2: "p = 2, micro-batches 4, 8",
        4: "p = 4, micro-batches 2, 4",
        6: "p = 6, micro-batches 1, 2",
        8: "p = 8, micro-batches 1, 2",
    }
    assert told[2].reason.startswith("The global batch of 20 is no multiple of 2 × 4 samples.")
    even = [each for each in candidates(choices(batch=16)) if isinstance(each, Refused)]
    assert [each.what for each in even if each.cause == "batch"] == ["p = 6, micro-batches 1, 2"]


def test_what_is_kept_by_node_needs_a_group_over_nodes() -> None:
    found = refused(choices(partition_size=2, micro_batch_size=1, reshard="node"))
    assert found.problem.rule.startswith("engine.reshard 'node' needs")
    assert "1 × 2" in found.problem.rule
    sizes = {each.partition_size for each in layouts(choices(micro_batch_size=1, reshard="node"))}
    assert sizes == {4, 8}


def test_what_the_job_fixes_is_not_varied() -> None:
    asked = choices(
        partition_size=4,
        micro_batch_size=2,
        activation_checkpointing=True,
        reshard="always",
        accumulation="node",
        hierarchical="always",
    )
    (found,) = layouts(asked)
    assert found.partition_size == 4
    assert found.micro_batch_size == 2
    assert found.is_checkpointed
    assert described(found) == (
        "p = 4, 2 groups, micro-batch 2, accumulation node, hierarchical, checkpointing"
    )


def test_no_route_is_flat_where_two_stages_are_asked_for_and_the_other_way_round() -> None:
    for pinned, route in (("always", "hierarchical"), ("never", "flat")):
        found = layouts(choices(partition_size=4, micro_batch_size=1, hierarchical=pinned))
        assert {each.strategy.gather_block for each in found} == {route}
        assert {each.strategy.scatter_root for each in found} == {route}


def test_a_network_of_latency_alone_takes_fewer_rounds() -> None:
    # 4 nodes of 2: flat 7 rounds between nodes, hierarchical 3.
    slow = Link(1e12, 1e-1)
    asked = choices(partition_size=8, micro_batch_size=1, reshard="always", inter_node=slow)
    assert planned(asked).choice.layout.strategy.gather_block == "hierarchical"


def test_a_slow_inside_and_a_fast_network_take_stages_where_they_need_fewer_rounds() -> None:
    fast, slow = Link(1e9, 0.0), Link(1e6, 1e-2)
    asked = choices(
        partition_size=8,
        micro_batch_size=1,
        reshard="always",
        accumulation="group",
        intra_node=slow,
        inter_node=fast,
    )
    # On gloo the gathers inside run in a row: 4 rounds of 10 ms against 7 of the flat ring.
    assert planned(asked).choice.layout.strategy.gather_block == "hierarchical"
    nodes_of_one = replace(asked, cluster=asked.cluster.with_nodes(8, 1))
    assert planned(nodes_of_one).choice.layout.strategy.gather_block == "flat"


def test_a_network_as_fast_as_the_inside_takes_the_flat_ring() -> None:
    # Its links inside and between nodes are busy at once: 7/8 of a unit for 3/4 and then 1/2.
    link = Link(1e5, 0.0)
    asked = choices(
        partition_size=8,
        micro_batch_size=1,
        reshard="always",
        accumulation="group",
        intra_node=link,
        inter_node=link,
    )
    strategy = planned(asked).choice.layout.strategy
    assert (strategy.gather_block, strategy.gather_root) == ("flat", "flat")
    assert (strategy.scatter_block, strategy.scatter_root) == ("flat", "flat")


def test_each_size_of_message_has_its_own_route() -> None:
    # Seven rounds between nodes for three, and 3/8 of a unit's bytes less.
    block, root = 4.0 * MODEL.block.parameters, 4.0 * MODEL.root.parameters
    between = (block * root) ** 0.5
    link = Link(1e5, 0.0)
    asked = choices(
        partition_size=8,
        micro_batch_size=1,
        reshard="always",
        accumulation="group",
        intra_node=link,
        inter_node=replace(link, latency_s=3 / 32 * between / link.bandwidth_bytes_per_s),
    )
    strategy = planned(asked).choice.layout.strategy
    assert block > root
    assert (strategy.gather_block, strategy.gather_root) == ("flat", "hierarchical")


def test_groups_are_what_the_cluster_holds_within_the_jobs_bounds() -> None:
    assert num_groups_of(choices(), 1, 1) == 8
    assert num_groups_of(choices(), 2, 1) == 4
    assert num_groups_of(choices(), 4, 1) == 2
    assert num_groups_of(choices(batch=4), 1, 1) == 4
    assert num_groups_of(choices(largest_groups=3), 1, 1) == 3
    odd = replace(choices(), cluster=CLUSTER.with_nodes(4, 8))
    assert num_groups_of(odd, 3, 1) == 5  # 2 on each node, and no more than micro-batches


def test_bounded_groups_are_compared_by_worker_seconds() -> None:
    fast = Link(1e12, 0.0)
    asked = choices(micro_batch_size=1, largest_groups=1, intra_node=fast, inter_node=fast)
    found = planned(asked)
    assert found.choice.layout.num_workers == 1
    eight = next(each for each in found.others if each.layout.num_workers == 8)
    assert eight.prediction.step_s < found.choice.prediction.step_s


def test_workers_that_are_too_few_for_another_group_count_against_bounded_groups() -> None:
    # Nearly all of a step is computing, so that 64 workers take it in 40/64 of the time of 40.
    asked = choices(
        batch=640,
        micro_batch_size=1,
        largest_groups=16,
        memory_bytes=58_000,
        intra_node=Link(1e12, 0.0),
        inter_node=Link(1e12, 0.0),
    )
    asked = replace(asked, cluster=asked.cluster.with_nodes(8, 8))
    found = planned(asked)
    everything = {each.layout.partition_size: each for each in (*found.others, found.choice)}
    assert min(everything) == 5
    five, eight = everything[5], everything[8]
    assert (five.layout.num_groups, eight.layout.num_groups) == (8, 8)
    assert eight.prediction.step_s < five.prediction.step_s
    assert found.choice.layout.partition_size == 8
    assert five.score == five.prediction.step_s * 64
    assert "slower than the choice by" in five.reason


def living_on(asked: Choices, *workers: int) -> Choices:
    """The same job on living nodes, of a cluster as the driver then describes it."""
    nodes = ClusterShape(tuple(NodeShape(str(i), count) for i, count in enumerate(workers)))
    return replace(asked, nodes=nodes, cluster=asked.cluster.with_nodes(len(workers), max(workers)))


def test_groups_on_unequal_nodes_are_counted_by_the_placement_rules() -> None:
    for workers, size, held in (
        ((8, 4, 4), 8, 1),
        ((8, 4, 4), 4, 4),
        ((8, 4, 4, 4), 12, 1),
        ((4, 4, 4, 4, 8), 16, 1),
        ((8, 8, 4), 16, 1),
    ):
        asked = living_on(choices(batch=960, micro_batch_size=1, partition_size=size), *workers)
        assert num_groups_of(asked, size, 1) == held, (workers, size)
        assert {each.num_groups for each in layouts(asked)} == {held}
    # Two more nodes of 8 are to come.
    asked = living_on(choices(batch=960), 8, 4, 4)
    asked = replace(asked, cluster=asked.cluster.with_nodes(5))
    assert num_groups_of(asked, 8, 1) == 3


@pytest.mark.parametrize(
    ("workers", "size", "span"),
    [((8, 4, 4, 4), 12, Span(3, 4)), ((4, 4, 4, 4, 8), 16, Span(4, 4))],
)
def test_a_group_on_unequal_nodes_is_costed_where_it_stands(
    workers: tuple[int, ...], size: int, span: Span
) -> None:
    asked = choices(batch=960, micro_batch_size=1, partition_size=size, reshard="node")
    asked = living_on(asked, *workers)
    found = planned(asked)
    for ranked in (found.choice, *found.others):
        by_hand = predict(MODEL, asked.cluster, ranked.layout, asked.workload, span)
        assert ranked.prediction == by_hand


def test_living_nodes_decide_what_can_be_placed() -> None:
    living = ClusterShape((NodeShape("a", 2), NodeShape("b", 2)))
    asked = replace(choices(micro_batch_size=1), nodes=living)
    assert {each.partition_size for each in layouts(asked)} == {1, 2, 4}
    found = [each for each in candidates(asked) if isinstance(each, Refused)]
    assert {each.partition_size for each in found if each.cause == "placement"} == {3}


@pytest.mark.long
@given(
    st.integers(1, 6),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([8, 12, 64, 100]),
    st.integers(15, 18),
)
@settings(deadline=None)
def test_whatever_is_chosen_fits_and_can_be_placed(
    nodes: int, workers: int, batch: int, memory_bits: int
) -> None:
    asked = choices(batch=batch, memory_bytes=1 << memory_bits)
    asked = replace(asked, cluster=asked.cluster.with_nodes(nodes, workers))
    found = plan_layout(asked)
    if isinstance(found, NoPlan):
        assert all([found.problem.value, found.problem.rule, found.problem.remedy])
        return
    for ranked in (found.choice, *found.others):
        layout = ranked.layout
        memory = memory_of(MODEL, layout, asked.workload, layout.span(workers), "gloo")
        assert memory.total <= usable_bytes(asked.cluster.memory_bytes, MODEL)
        assert layout.num_workers <= nodes * workers
        samples = layout.partition_size * layout.micro_batch_size
        assert batch % samples == 0
        assert layout.num_groups <= batch // samples
        assert layout.partition_size <= workers or layout.partition_size % workers == 0


def test_worker_counts_double() -> None:
    assert worker_counts(16, 100) == [16, 32, 64]
    assert worker_counts(3, 3) == [3]


def test_scaling_keeps_the_batch_a_worker_or_the_whole_batch() -> None:
    asked = choices(batch=16, micro_batch_size=1)
    weak = scale(asked, [2, 4, 8], is_weak=True)
    assert [point.global_batch_size for point in weak] == [16, 32, 64]
    strong = scale(asked, [2, 4, 8], is_weak=False)
    assert [point.global_batch_size for point in strong] == [16, 16, 16]
    for point in weak + strong:
        assert not isinstance(point.full, str)
        assert point.full.layout.partition_size == point.num_workers
        assert not isinstance(point.mics, str)
        assert point.mics.samples_per_s >= point.full.samples_per_s / 1.031


def test_scaling_says_what_cannot_be() -> None:
    (odd, many) = scale(choices(batch=4), [3, 8], is_weak=False)
    assert odd.mics == odd.full == "3 workers are no whole nodes of 2."
    assert isinstance(many.full, str)
    assert "batch" in many.full


def test_a_full_stop_in_a_value_does_not_end_the_rule() -> None:
    broken = BrokenRule("'a. b' is no batch.", "Choose another.")
    found = refused(replace(choices(micro_batch_size=1), batch_problem=lambda *_sizes: broken))
    assert found.problem.rule == "no layout suits the batch: 'a. b' is no batch."
    assert found.problem.remedy == "Choose another."


def test_the_name_of_a_field_begins_no_capital() -> None:
    broken = BrokenRule("training.global_batch_size (8) is odd.", "Choose 9.")
    found = refused(replace(choices(micro_batch_size=1), batch_problem=lambda *_sizes: broken))
    reasons = {each.reason for each in found.refused if each.cause == "batch"}
    assert reasons == {"training.global_batch_size (8) is odd. Choose 9."}
