"""The store: histories survive, nothing is stored twice, readers never see a gap."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fakes import FakeSupervisor, specification

from mics_core.errors import JobNotFoundError, SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobEvent, JobState
from service.store import Store

SPEC = parse_job_spec(specification())


def open_store(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'deeper' / 'jobs.sqlite3'}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path)
    store.add_job("a", SPEC, source="rest", created=1.0, reason="It was submitted.")
    return store


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


def test_everything_survives_reopening(store: Store, tmp_path: Path) -> None:
    supervisor = played(4)
    store.append_events("a", supervisor.history)
    store.save_status("a", supervisor.status())
    before = store.job("a")
    store.close()
    again = open_store(tmp_path)
    assert again.job("a") == before
    assert again.events_after("a", 0, 100) == supervisor.history
    assert again.newest_steps("a", 2) == supervisor.steps[-2:]
    assert again.last_sequence("a") == len(supervisor.history)


def test_a_removed_job_leaves_nothing(store: Store) -> None:
    store.append_events("a", played().history)
    store.remove_job("a")
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


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////proc/nowhere/jobs.sqlite3", "unknown://me:secret@host/db"]
)
def test_a_database_that_cannot_be_opened_is_named_without_its_password(url: str) -> None:
    with pytest.raises(SpecificationError, match="MICS_DATA_DIRECTORY") as refused:
        Store(url)
    assert refused.value.problems[0].field == "database_url"
    assert "secret" not in str(refused.value)
