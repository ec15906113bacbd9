"""The summary of a step: what its sums prove about the samples used, and how it is combined."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mics_core.engine.summary import Share, Summary, combine, combine_groups

pytestmark = pytest.mark.pure

QUICK = settings(max_examples=60, deadline=None, database=None)
RUNS = st.tuples(st.integers(0, 5000), st.integers(1, 60))


def summary_of(
    places: list[int],
    *,
    loss: float = 0.0,
    pending: int = 0,
    checkpoint: float = math.inf,
    behind: float = 0.0,
    full: float = 0.0,
) -> Summary:
    return Summary(
        loss_sum=loss,
        num_tokens=10.0 * len(places),
        num_samples=len(places),
        offset_sum=sum(places),
        offset_square_sum=sum(place * place for place in places),
        pending_generation=pending,
        checkpoint=checkpoint,
        behind=behind,
        full=full,
    )


def run_of(first: int, number: int) -> Share:
    return Share((range(first, first + number),))


@QUICK
@given(RUNS, st.randoms(use_true_random=False))
def test_the_places_of_a_run_are_accepted_in_any_order(
    run: tuple[int, int], shuffler: random.Random
) -> None:
    first, number = run
    places = list(range(first, first + number))
    shuffler.shuffle(places)
    assert summary_of(places).covers(run_of(first, number))


@QUICK
@given(RUNS, st.data())
def test_a_missing_or_a_doubled_place_is_refused(run: tuple[int, int], data: st.DataObject) -> None:
    first, number = run
    places = list(range(first, first + number))
    place = data.draw(st.sampled_from(places))
    assert not summary_of([*places, place]).covers(run_of(first, number))
    if number > 1:
        rest = [other for other in places if other != place]
        assert not summary_of(rest).covers(run_of(first, number))
        doubled = data.draw(st.sampled_from(rest))
        assert not summary_of([*rest, doubled]).covers(run_of(first, number))


@QUICK
@given(RUNS, st.data())
def test_up_to_two_wrong_places_are_refused_wherever_they_are(
    run: tuple[int, int], data: st.DataObject
) -> None:
    # Equal sums and equal sums of squares of two pairs mean equal pairs.
    first, number = run
    places = list(range(first, first + number))
    wrong = list(places)
    for _ in range(2):
        wrong[data.draw(st.integers(0, number - 1))] = data.draw(st.integers(0, 6000))
    assume(sorted(wrong) != places)
    assert not summary_of(wrong).covers(run_of(first, number))


def test_the_sums_are_no_proof_against_three_wrong_places_that_cancel() -> None:
    # 0 + 4 + 5 = 1 + 2 + 6, and so are the squares: a check against slips, not against intent.
    assert summary_of([1, 2, 6, 1, 2, 3, 6]).covers(run_of(0, 7))


@QUICK
@given(RUNS, st.integers(-3, 3), st.integers(-3, 3))
def test_only_the_run_itself_is_accepted(run: tuple[int, int], shift: int, longer: int) -> None:
    first, number = run
    assume((shift, longer) != (0, 0) and first + shift >= 0 and number + longer >= 1)
    places = list(range(first, first + number))
    assert not summary_of(places).covers(run_of(first + shift, number + longer))


@QUICK
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_the_summaries_of_all_groups_cover_the_batch(sizes: list[int]) -> None:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    parts = [
        summary_of(list(range(start, start + size)))
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert combine(parts).covers(run_of(0, sum(sizes)))
    if len(parts) > 1:
        assert not combine(parts[1:]).covers(run_of(0, sum(sizes)))
        doubled = [*parts[1:], parts[1]]
        assert not combine(doubled).covers(run_of(0, sum(sizes)))


def test_a_share_of_several_runs_is_accepted_whole_alone() -> None:
    share = Share.of_micro_batches([4, 1, 0], samples=3)
    assert share == Share((range(6), range(12, 15)))
    places = [place for run in share.runs for place in run]
    assert share.num_samples == len(places)
    assert summary_of(places).covers(share)
    assert not summary_of([*places[:-1], 15]).covers(share)
    assert not summary_of(places[:6]).covers(share)
    assert not summary_of(list(range(9))).covers(share)


def test_combining_adds_the_sums_and_takes_the_newest_generation() -> None:
    parts = [
        summary_of([4, 5], loss=1.5, pending=3, checkpoint=20.0),
        summary_of([0, 1, 2], loss=0.25, pending=7, checkpoint=-20.0),
        summary_of([], behind=1.0, full=1.0),
    ]
    total = combine(parts)
    assert total == Summary(
        loss_sum=1.75,
        num_tokens=50,
        num_samples=5,
        offset_sum=12,
        offset_square_sum=46,
        pending_generation=7,
        checkpoint=-20.0,
        behind=1.0,
        full=1.0,
    )
    assert parts[2].covers(Share())


@QUICK
@given(st.lists(st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_each_group_is_combined_of_its_own_workers_to_the_same_bits_everywhere(
    losses: list[list[float]],
) -> None:
    # losses[rank][group]; each worker has gathered the row of its rank.
    rows = [
        [summary_of([3 * rank + group], loss=loss) for group, loss in enumerate(row)]
        for rank, row in enumerate(losses)
    ]
    vectors = [[value for part in row for value in part.as_vector()] for row in rows]
    groups = combine_groups(vectors, num_groups=3)
    assert groups == [combine([row[group] for row in rows]) for group in range(3)]
    assert [group.num_samples for group in groups] == [len(losses)] * 3
    assert combine(groups).covers(run_of(0, 3 * len(losses)))


def test_a_summary_survives_the_exchange_as_doubles() -> None:
    summary = summary_of(list(range(1000)), loss=0.1, pending=12)
    assert Summary(*summary.as_vector()) == summary
    assert all(isinstance(value, float) for value in summary.as_vector())


def test_the_largest_batch_whose_squares_are_exact_is_accepted() -> None:
    number = 300_000
    summary = Summary(
        0.0,
        0.0,
        float(number),
        float(number * (number - 1) // 2),
        float((number - 1) * number * (2 * number - 1) // 6),
        0.0,
        math.inf,
        0.0,
        0.0,
    )
    assert summary.offset_square_sum < 2**53
    assert summary.covers(run_of(0, number))
