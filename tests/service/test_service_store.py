"""The store: histories survive, nothing is stored twice, readers never see a gap."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeSupervisor, specification

from mics_core.errors import JobConflictError, JobNotFoundError, SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobEvent, JobState, StepEvent
from service.errors import RequestError
from service.listing import JobFilter, Position
from service.store import Store, SubmissionKey

SPEC = parse_job_spec(specification())


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    store.add_job("a", SPEC, source="rest", created=1.0, reason="It was submitted.")
    yield store
    store.close()


def played(num_steps: int = 3) -> FakeSupervisor:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(num_steps)
    return supervisor


def test_events_come_back_as_they_were_in_pages(store: Store) -> None:
    history = played(5).history
    assert store.append_events("a", history) == history
    assert store.events_after("a", 0, 100) == history
    assert store.events_after("a", 2, 3) == history[2:5]
    assert store.events_after("nobody", 0, 100) == []


def test_an_event_is_stored_once(store: Store) -> None:
    history = played(3).history
    store.append_events("a", history[:3])
    assert store.append_events("a", history) == history[3:]
    assert store.events_after("a", 0, 100) == history


def test_nothing_follows_the_end(store: Store) -> None:
    supervisor = played()
    supervisor.finish()
    supervisor.lose_group(0, "It left.")
    fresh = store.append_events("a", supervisor.history)
    assert fresh[-1].kind == "state"
    assert store.append_events("a", supervisor.history) == []
    assert store.close_job("a", JobState.FAILED, "Too late.", 5.0, None) == []
    job = store.job("a")
    assert (job.state, job.finished) == (JobState.FINISHED, fresh[-1].time)


def test_closing_a_job_continues_its_numbers(store: Store) -> None:
    history = played(3).history
    store.append_events("a", history)
    (last,) = store.close_job("a", JobState.FAILED, "Its driver died.", 9.0, None)
    assert last.sequence == len(history) + 1
    assert store.events_after("a", len(history), 10) == [last]
    assert store.open_job_ids() == set()


def test_closing_a_job_keeps_the_steps_that_its_events_told(store: Store) -> None:
    supervisor = played(3)
    store.append_events("a", supervisor.history)
    status = supervisor.status()
    store.save_status("a", status)
    supervisor.train(2, loss=1.25)
    store.append_events("a", supervisor.history)
    store.close_job("a", JobState.FAILED, "Its driver died.", 9.0, status)
    job = store.job("a")
    assert job.status is not None
    assert (job.step, job.status.step) == (5, 5)
    assert (job.loss, job.status.loss) == (1.25, 1.25)


def test_everything_survives_reopening(store: Store, database_url: str) -> None:
    supervisor = played(4)
    store.append_events("a", supervisor.history)
    store.save_status("a", supervisor.status())
    before = store.job("a")
    store.close()
    again = Store(database_url)
    assert again.job("a") == before
    assert again.events_after("a", 0, 100) == supervisor.history
    records = again.throughput("a", 10, 2, None, 0.0).records
    assert [record.step for record in records] == [2, 3]
    assert again.last_sequence("a") == len(supervisor.history)
    again.close()


def cancel_and_delete(store: Store, job_id: str) -> None:
    store.close_job(job_id, JobState.CANCELLED, "It was cancelled.", 100.0, None)
    store.delete_job(job_id, 101.0)


def test_a_deleted_job_leaves_nothing(store: Store) -> None:
    store.append_events("a", played().history)
    cancel_and_delete(store, "a")
    assert store.list_jobs() == []
    assert store.events_after("a", 0, 10) == []
    with pytest.raises(JobNotFoundError, match="'a'"):
        store.job("a")


def test_a_cancel_is_noted_once_until_it_is_withdrawn(store: Store) -> None:
    assert [store.request_cancel("a"), store.request_cancel("a")] == [True, False]
    store.withdraw_cancel("a")
    assert store.request_cancel("a")


def test_a_reader_beside_a_writer_sees_no_gap(store: Store) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    for _ in range(60):
        supervisor.train(1)
        supervisor.enter_generation([0])
    history = supervisor.history

    def write() -> None:
        for index in range(0, len(history), 3):
            store.append_events("a", history[index : index + 3])

    writer = threading.Thread(target=write)
    writer.start()
    found: list[JobEvent] = []
    while writer.is_alive() or len(found) < len(history):
        found += store.events_after("a", len(found), 7)
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    writer.join()
    assert found == history


def add(store: Store, job_id: str, created: float, **changes: Any) -> bool:
    spec = parse_job_spec(specification(labels=changes.pop("labels", {})))
    values = {"source": "rest", "created": created, "reason": "It was submitted."}
    return store.add_job(job_id, spec, **values | changes)


def ids(store: Store, wanted: JobFilter) -> list[str]:
    return [job.job_id for job in store.list_jobs(wanted)]


def test_two_writers_of_one_history_store_it_once_and_in_order(
    store: Store, database_url: str
) -> None:
    history = played(40).history
    stores = [store, Store(database_url)]
    # Each hears the same events in pieces of another size, and both write at once.
    pieces = [[history[at : at + size] for at in range(0, len(history), size)] for size in (3, 5)]
    start = threading.Barrier(2)

    def write(number: int) -> list[JobEvent]:
        start.wait()
        return [e for piece in pieces[number] for e in stores[number].append_events("a", piece)]

    with ThreadPoolExecutor(2) as pool:
        fresh = [*pool.map(write, range(2))]
    numbers = sorted(event.sequence for part in fresh for event in part)
    assert numbers == list(range(1, len(history) + 1)), "an event was new to both, or to none"
    assert store.events_after("a", 0, 1000) == history
    stores[1].close()


def test_a_key_has_one_job_however_many_submit_it_at_once(store: Store, database_url: str) -> None:
    other = Store(database_url)
    key = SubmissionKey("ada", "k1", "hash")

    def submit(number: int) -> bool:
        target = store if number % 2 else other
        return add(target, f"job-{number}", 2.0, owner="ada", key=key)

    with ThreadPoolExecutor(4) as pool:
        added = [*pool.map(submit, range(8))]
    assert added.count(True) == 1
    winner = f"job-{added.index(True)}"
    assert store.submission("ada", "k1") == (winner, "hash")
    assert sorted(ids(store, JobFilter())) == sorted(["a", winner])
    assert store.submission("bob", "k1") is None, "a key is its owner's"
    assert add(store, "bobs", 3.0, owner="bob", key=replace(key, owner="bob"))
    assert add(store, "nobodys", 3.0, key=replace(key, owner=None))
    cancel_and_delete(store, winner)
    assert other.submission("ada", "k1") is None, "the key of a deleted job is free"
    other.close()


def test_work_is_claimed_by_one_and_free_again_after_it(store: Store, database_url: str) -> None:
    other = Store(database_url) if store.database.is_shared else store
    with store.database.claim("work") as mine, other.database.claim("work") as theirs:
        assert (mine, theirs) == (True, False)
        with other.database.claim("other work") as different:
            assert different
    with other.database.claim("work") as later:
        assert later


def test_the_list_is_filtered_by_state_owner_and_labels(store: Store) -> None:
    add(store, "b", 2.0, owner="ada", labels={"team": "search", "kind": "a:b"})
    add(store, "c", 3.0, owner="ada", labels={"team": "ads"})
    add(store, "d", 3.0, owner="bob", labels={"team": "search"})
    store.close_job("d", JobState.FAILED, "It failed.", 4.0, None)
    assert ids(store, JobFilter()) == ["c", "d", "b", "a"]
    assert ids(store, JobFilter(owner="ada")) == ["c", "b"]
    assert ids(store, JobFilter(labels=(("team", "search"),))) == ["d", "b"]
    assert ids(store, JobFilter(labels=(("team", "search"), ("kind", "a:b")))) == ["b"]
    assert ids(store, JobFilter(states=(JobState.FAILED,), owner="bob")) == ["d"]
    assert ids(store, JobFilter(owner="' OR 1=1 --")) == []
    assert store.job("b").labels == {"team": "search", "kind": "a:b"}


def test_pages_go_on_where_the_last_one_ended_while_jobs_come_and_go(store: Store) -> None:
    for number in range(7):
        add(store, f"n{number}", 10.0 + number // 3)
    expected = ids(store, JobFilter())
    found = ids(store, JobFilter(limit=3))
    last = store.job(found[-1])
    cursor = Position(last.created, last.job_id).cursor
    add(store, "newer", 99.0)
    cancel_and_delete(store, found[-1])
    found += ids(store, JobFilter(after=Position.from_cursor(cursor)))
    assert found == expected


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "bnVsbA", "WzEsIDJd", "W05hTiwgImEiXQ", "é", "W" * 99),
        *map(
            encoded,
            ('[1.0, "\\ud800"]', '[Infinity, "a"]', '[1e999, "a"]', "[9" + "9" * 320 + ', "a"]'),
        ),
        *map(encoded, ('["1", "a"]', '[null, "a"]', '[1, "a", 2]', '{"1": 2, "3": 4}')),
    ],
)
def test_a_cursor_that_nobody_gave_is_refused(cursor: str) -> None:
    with pytest.raises(RequestError, match="next_cursor"):
        Position.from_cursor(cursor)


def test_a_deleted_job_is_gone_and_does_not_come_back(store: Store) -> None:
    add(store, "b", 2.0, key=SubmissionKey(None, "k", "h"), labels={"x": "y"})
    with pytest.raises(JobConflictError, match="Cancel it first"):
        store.delete_job("b", 5.0)
    store.append_events("b", [e for e in played(2).history if e.kind != "state"])
    store.close_job("b", JobState.CANCELLED, "It was cancelled.", 4.0, None)
    store.delete_job("b", 5.0)
    assert ids(store, JobFilter()) == ["a"]
    assert store.events_after("b", 0, 10) == []
    assert store.submission(None, "k") is None
    # Its supervisor may still be seen for some seconds.
    assert store.has_job("b")
    assert not add(store, "b", 6.0)
    with pytest.raises(JobNotFoundError):
        store.delete_job("b", 7.0)


def test_steps_that_are_committed_again_replace_the_earlier_ones(store: Store) -> None:
    supervisor = played(6)
    store.append_events("a", supervisor.history)
    del supervisor.steps[3:]
    supervisor.enter_generation([0], "All others are lost.")
    supervisor.train(2, loss=1.0)
    store.append_events("a", supervisor.history)
    records = store.throughput("a", 100, None, None, 0.0).records
    assert [(r.step, r.loss) for r in records] == [(0, 2), (1, 2), (2, 2), (3, 1), (4, 1)]
    assert len(store.events_after("a", 0, 100)) == len(supervisor.history)


def test_history_is_summed_up_to_the_points_that_are_asked_for(store: Store) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(4, loss=3.0)
    supervisor.train(5, loss=1.0)
    supervisor.train(1, loss=float("nan"))
    store.append_events("a", supervisor.history)
    status = supervisor.status().model_copy(
        update={"model_flops_per_sample": 3e12, "peak_flops_per_s": 24e12}
    )
    store.save_status("a", status)
    whole = store.throughput("a", 5, None, None, 0.0)
    assert whole.steps_per_point == 2
    assert [record.step for record in whole.records] == [1, 3, 5, 7, 9]
    assert [record.loss for record in whole.records[:4]] == [3.0, 3.0, 1.0, 1.0]
    assert whole.records[4].loss != whole.records[4].loss, "a diverged step must show"
    first = whole.records[0]
    assert (first.tokens, first.samples, first.step_s) == (1024.0, 8.0, 0.5)
    assert (first.tokens_per_s, first.samples_per_s) == (2048.0, 16.0)
    # 16 samples a second of 3 TFLOP each, by 2 groups of 2 workers.
    assert (first.tflops_per_worker, first.mfu) == (12.0, 0.5)
    assert first.communication_share is None
    part = store.throughput("a", 500, 2, 3, 0.0)
    assert [record.step for record in part.records] == [2, 3]
    assert part.steps_per_point == 1
    assert store.throughput("a", 500, 50, None, 0.0).records == []


def _is_step(event: JobEvent, number: int) -> bool:
    return isinstance(event, StepEvent) and event.record.step == number


def test_the_share_of_communication_is_that_of_all_steps_of_a_point(store: Store) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(6)
    for number, waited_s in enumerate((0.1, 0.2, 0.5, 0.6, None, 0.1)):
        at = next(i for i, e in enumerate(supervisor.history) if _is_step(e, number))
        event = supervisor.history[at]
        record = event.record.model_copy(update={"communication_s": waited_s})
        supervisor.history[at] = event.model_copy(update={"record": record})
    store.append_events("a", supervisor.history)
    assert store.events_after("a", 0, 100) == supervisor.history
    whole = store.throughput("a", 3, None, None, 0.0)
    # Two of the last three are known: of the point that has the other one nothing can be said.
    shares = [record.communication_share for record in whole.records]
    assert shares == [pytest.approx(0.3), 1.0, None]


def test_goodput_counts_steps_of_usual_length_only(store: Store) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(11)
    # Eleven commits, half a second each but the sixth, which waited for ten seconds.
    now = 1000.0
    for number, event in enumerate(e for e in supervisor.history if e.kind == "step"):
        step_s = 10.0 if number == 5 else 0.5
        now += step_s
        record = event.record.model_copy(update={"time": now, "step_s": step_s})
        at = supervisor.history.index(event)
        supervisor.history[at] = event.model_copy(update={"record": record})
    store.append_events("a", supervisor.history)
    assert store.throughput("a", 5, None, None, now).goodput == pytest.approx(5.0 / 14.5)
    assert store.throughput("a", 5, None, None, now + 14.5).goodput == pytest.approx(5.0 / 29.0)
    store.close_job("a", JobState.FAILED, "It failed.", now + 99.0, None)
    assert store.throughput("a", 5, None, None, now + 99).goodput == pytest.approx(5.0 / 14.5)


def test_a_stall_shows_in_the_goodput_of_a_wide_point_as_in_that_of_its_steps(
    store: Store,
) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(1)
    # A thousand steps of a second each; the step 600 took 100 more.
    commits, at = [], 5000.0
    for number in range(1000):
        step_s = 101.0 if number == 600 else 1.0
        at += step_s
        record = supervisor.steps[0].model_copy(
            update={"step": number, "time": at, "step_s": step_s}
        )
        commits.append(StepEvent(sequence=number + 3, time=at, record=record))
    store.append_events("a", [*supervisor.history[:2], *commits])
    whole = store.throughput("a", 4, None, None, at)
    assert [point.step for point in whole.records] == [249, 499, 749, 999]
    # Averaged over its 250 steps it is nothing unusual: 1.4 s each.
    assert whole.records[2].step_s == pytest.approx(1.4)
    expected = [1.0, 1.0, 749 / 849, 999 / 1099]
    assert [point.goodput for point in whole.records] == pytest.approx(expected)
    assert whole.goodput == pytest.approx(expected[-1])
    assert whole.first_time == 5001.0
    exact = {
        point.step: point.goodput for point in store.throughput("a", 2000, None, None, at).records
    }
    assert exact[0] is None
    assert (exact[599], exact[600]) == (1.0, pytest.approx(600 / 700))
    assert [exact[step] for step in (249, 499, 749, 999)] == pytest.approx(expected)
    # A part of the run is counted since the run's first step too.
    part = store.throughput("a", 2, 600, 799, at)
    assert [point.goodput for point in part.records] == pytest.approx([699 / 799, 799 / 899])
    assert store.throughput("a", 4, 2000, None, at).records == []


def test_a_hundred_thousand_steps_are_summed_up_at_once(store: Store) -> None:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(1)
    first = supervisor.history[-1]
    many = [
        first.model_copy(
            update={
                "sequence": first.sequence + number,
                "record": first.record.model_copy(
                    update={"step": number, "time": float(number), "step_s": 1.0 + number % 7 / 10}
                ),
            }
        )
        for number in range(100_000)
    ]
    store.append_events("a", [*supervisor.history[:-1], *many])
    store.throughput("a", 500, None, None, 1e5)
    begin = time.perf_counter()
    found = store.throughput("a", 500, None, None, 1e5)
    took_s = time.perf_counter() - begin
    assert (len(found.records), found.steps_per_point) == (500, 200)
    assert took_s < 3.0, f"it took {took_s:.2f} s"


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////proc/nowhere/jobs.sqlite3", "unknown://me:secret@host/db"]
)
def test_a_database_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(SpecificationError, match="MICS_DATA_DIRECTORY") as refused:
        Store(url)
    assert refused.value.problems[0].field == "database_url"
    assert "secret" not in str(refused.value)
