"""What a supervisor remembers: stored before it is told, and nothing more than was told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from mics_core.cluster import journal as journals
from mics_core.cluster import record as records
from mics_core.cluster.journal import Journal
from mics_core.cluster.record import Record
from mics_core.spec.status import StepRecord
from tests.cluster.head import Head

SUPERVISOR = "a1"


def add_steps(journal: Journal, number: int) -> None:
    for _ in range(number):
        step = journal.last_sequence
        journal.step(StepRecord.model_construct(step=step, step_s=1.0, tokens_per_s=1.0), 1.0)


def record_of(journal: Journal) -> Record:
    return Record("job-1", SUPERVISOR, lambda: ({"journal": journal}, journal))


def remembered() -> Journal:
    """The journal that a supervisor finds which is started anew."""
    found = record_of(Journal()).load()
    assert found is not None
    memory, events = found
    journal: Journal = memory["journal"]
    journal.put_back(events)
    return journal


def sequences(journal: Journal) -> list[int]:
    return [event.sequence for event in journal.slice(1, journal.last_sequence)]


def run(story: Callable[[], Any]) -> None:
    asyncio.run(story())


@pytest.mark.parametrize("batches", [[1], [31], [32], [33], [1, 31, 1], [100, 3, 64, 32]])
def test_what_is_settled_is_remembered_whatever_came_in_which_batches(
    head: Head, batches: list[int]
) -> None:
    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        for number in batches:
            add_steps(journal, number)
            record.touch()
            await record.settle()
            assert sequences(remembered()) == list(range(1, journal.last_sequence + 1))

    run(story)
    assert remembered().last_step is not None


def test_a_record_goes_on_where_the_one_before_was(head: Head) -> None:
    async def story() -> None:
        journal = Journal()
        for number in (40, 5, 30):
            record = record_of(journal)
            record.load()
            add_steps(journal, number)
            record.touch()
            await record.settle()
            journal = remembered()
        assert sequences(journal) == list(range(1, 76))

    run(story)


def test_all_who_wait_share_a_store_and_nothing_is_stored_without_a_change(head: Head) -> None:
    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        await record.settle()
        assert head.puts == []
        add_steps(journal, 1)
        record.touch()
        await asyncio.gather(*(record.settle() for _ in range(50)))
        assert len(head.puts) == 2  # the events, and the memory
        await record.settle()
        assert len(head.puts) == 2

    run(story)


def test_events_that_were_stored_but_never_told_are_not_remembered(head: Head) -> None:
    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        add_steps(journal, 3)
        record.touch()
        await record.settle()
        add_steps(journal, 2)
        record.touch()
        head.puts_left = 1  # the events, and not the memory: as if it were killed in between
        await record.settle()

    run(story)
    assert sequences(remembered()) == [1, 2, 3]


def test_a_head_that_is_away_does_not_hold_up_the_run_and_nothing_is_lost_after_it(
    head: Head,
) -> None:
    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        head.puts_left = 0
        add_steps(journal, 40)
        record.touch()
        await asyncio.wait_for(record.settle(), 5)
        head.puts_left = 10**9
        add_steps(journal, 1)
        record.touch()
        await record.settle()

    run(story)
    assert sequences(remembered()) == list(range(1, 42))


def test_old_events_are_forgotten_together_with_the_journals(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_KEPT_EVENTS", 100)

    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        for _ in range(20):
            add_steps(journal, 25)
            record.touch()
            await record.settle()
        kept = [event.sequence for event in remembered().slice(1, 500)]
        assert kept == list(range(401, 501))
        assert len(head.values) <= 1 + -(-100 // 32) + 1
        assert not record.has_ended()
        await record.end()
        assert list(head.values) == [b"job-1/a1/ended"], "all but that is forgotten"
        assert record_of(Journal()).has_ended()

    run(story)


def test_another_supervisor_of_a_job_does_not_read_what_one_before_it_left(head: Head) -> None:
    async def story() -> None:
        journal = Journal()
        add_steps(journal, 3)
        before, after = (
            Record("job-1", name, lambda: (None, journal)) for name in ("before", "after")
        )
        before.touch()
        await before.settle()
        assert after.load() is None
        await before.end()
        assert before.has_ended()
        assert not after.has_ended()
        await after.end()
        assert list(head.values) == [b"job-1/after/ended"], "one for a job is enough"

    run(story)


def test_a_store_that_comes_late_does_not_bring_the_record_back(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_STORED_WITHIN_S", 0.1)

    async def story() -> None:
        journal = Journal()
        record = record_of(journal)
        add_steps(journal, 3)
        head.answers.clear()
        record.touch()
        await record.settle()
        ended = asyncio.create_task(record.end())
        await asyncio.sleep(0)
        head.answers.set()
        await asyncio.wait_for(ended, 5)

    run(story)
    assert list(head.values) == [b"job-1/a1/ended"]


def test_a_head_that_does_not_answer_is_waited_for_once_and_made_good_to_later(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_STORED_WITHIN_S", 0.3)

    async def scenario() -> None:
        journal = Journal()
        record = record_of(journal)
        took_s = []
        head.answers.clear()
        for _ in range(3):
            begin = time.monotonic()
            add_steps(journal, 40)
            record.touch()
            await record.settle()
            took_s.append(time.monotonic() - begin)
        assert took_s[0] >= 0.3
        assert max(took_s[1:]) < 0.3, "the same answer was waited for twice"
        assert not head.values
        head.answers.set()
        while not head.values:
            await asyncio.sleep(0.01)
        record.touch()
        await record.settle()
        while len(await remembered().after(0, 0.0)) < 120:  # the late one may still be storing
            record.touch()
            await record.settle()

    asyncio.run(scenario())
