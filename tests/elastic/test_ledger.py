"""The ledger of samples, against a plain count of places."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mics_core.data.order import micro_batches_of_group
from mics_core.elastic.ledger import SampleLedger, SampleUse

pytestmark = pytest.mark.pure

BATCH = 8
WHOLE = [(0, 4), (4, 4)]


def use_of(*shares: tuple[int, int]) -> SampleUse:
    ledger = SampleLedger(BATCH)
    assert ledger.commit(0, 1, shares)
    return ledger.total


def test_an_empty_ledger_has_used_nothing() -> None:
    assert SampleLedger(BATCH).total == SampleUse(0, 0, 0)


def test_each_sample_of_a_committed_step_is_counted_once() -> None:
    ledger = SampleLedger(BATCH)
    for step in range(5):
        assert ledger.commit(step, 1, WHOLE)
    assert ledger.total == SampleUse(40, 40, 0)


def test_the_same_commit_reported_by_every_group_counts_once() -> None:
    ledger = SampleLedger(BATCH)
    assert ledger.commit(0, 2, WHOLE)
    assert not ledger.commit(0, 2, WHOLE)
    assert not ledger.commit(0, 1, [(0, 1)])
    assert ledger.total == SampleUse(8, 8, 0)


def test_a_step_committed_again_by_a_later_generation_replaces_the_earlier_entry() -> None:
    ledger = SampleLedger(BATCH)
    for step in range(5):
        ledger.commit(step, 1, [(0, 4), (3, 4)])
    assert ledger.total == SampleUse(40, 35, 5)
    for step in (2, 0, 4):
        assert ledger.commit(step, 3, WHOLE)
        assert not ledger.commit(step, 2, [(0, 1)])
    assert ledger.total == SampleUse(40, 38, 2)


def test_a_rewind_forgets_the_steps_that_will_be_done_again() -> None:
    ledger = SampleLedger(BATCH)
    for step in range(6):
        ledger.commit(step, 1 + step // 3, WHOLE)
    ledger.rewind(6)
    assert ledger.total == SampleUse(48, 48, 0)
    ledger.rewind(2)
    assert ledger.total == SampleUse(16, 16, 0)
    assert ledger.commit(2, 3, WHOLE)
    ledger.rewind(0)
    assert ledger.total == SampleUse(0, 0, 0)


def test_a_late_report_of_a_forgotten_step_is_ignored() -> None:
    ledger = SampleLedger(BATCH)
    for step in range(4):
        ledger.commit(step, 2, WHOLE)
    ledger.rewind(1)
    assert not ledger.commit(3, 2, WHOLE)
    assert not ledger.commit(4, 1, WHOLE)
    assert ledger.commit(1, 3, WHOLE)
    assert ledger.total == SampleUse(16, 16, 0)


def test_missing_and_repeated_shares_are_seen() -> None:
    assert use_of((0, 4)) == SampleUse(8, 4, 0)
    assert use_of((0, 4), (5, 3)) == SampleUse(8, 7, 0)
    assert use_of((0, 4), (4, 4), (4, 4)) == SampleUse(8, 8, 4)
    assert use_of((0, 5), (4, 4)) == SampleUse(8, 8, 1)
    assert use_of((0, 8), (2, 3), (3, 3)) == SampleUse(8, 8, 6)
    assert use_of() == SampleUse(8, 0, 0)


def test_places_outside_the_batch_are_not_samples_of_it() -> None:
    assert use_of((0, 8), (8, 2)) == SampleUse(8, 8, 0)
    assert use_of((-2, 4)) == SampleUse(8, 2, 0)


SHARES = st.lists(st.tuples(st.integers(-4, 12), st.integers(0, 12)), max_size=5)
COMMITS = st.tuples(st.just("commit"), st.integers(0, 9), st.integers(1, 6), SHARES)
REWINDS = st.tuples(st.just("rewind"), st.integers(0, 9), st.just(0), st.just([]))


class PlainLedger:
    """The same in the simplest way: every place of every step."""

    def __init__(self) -> None:
        self.steps: dict[int, tuple[int, list[int]]] = {}
        self.void = (0, 0)

    def commit(self, step: int, generation: int, shares: list[tuple[int, int]]) -> bool:
        if step >= self.void[0] and generation <= self.void[1]:
            return False
        if self.steps.get(step, (0, []))[0] >= generation:
            return False
        places = [first + offset for first, number in shares for offset in range(number)]
        self.steps[step] = (generation, places)
        return True

    def rewind(self, step: int) -> None:
        forgotten = {known: self.steps.pop(known) for known in [*self.steps] if known >= step}
        if forgotten:
            newest = max(generation for generation, _ in forgotten.values())
            self.void = (step, max(self.void[1], newest))

    @property
    def total(self) -> SampleUse:
        places = [places for _, places in self.steps.values()]
        return SampleUse(
            BATCH * len(places),
            sum(len(set(row) & set(range(BATCH))) for row in places),
            sum(len(row) - len(set(row)) for row in places),
        )


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(st.one_of(COMMITS, COMMITS, COMMITS, REWINDS), max_size=20))
def test_any_history_is_counted_like_place_by_place(
    history: list[tuple[str, int, int, list[tuple[int, int]]]],
) -> None:
    ledger, plain = SampleLedger(BATCH), PlainLedger()
    for what, step, generation, shares in history:
        if what == "commit":
            assert ledger.commit(step, generation, shares) == plain.commit(step, generation, shares)
        else:
            ledger.rewind(step)
            plain.rewind(step)
        assert ledger.total == plain.total


def test_a_long_run_with_a_big_batch_takes_little_memory() -> None:
    batch, num_groups, steps = 4096, 8, 10_000
    ledger = SampleLedger(batch)
    shares = [
        (share.start, len(share))
        for share in (micro_batches_of_group(batch, num_groups, g) for g in range(num_groups))
    ]
    for step in range(steps):
        ledger.commit(step, 1 + step // 2500, shares)
    assert ledger.total == SampleUse(batch * steps, batch * steps, 0)
    assert len(ledger._stretches) == 4
