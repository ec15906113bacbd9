"""What a power cut may take from SQLite, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import FakeSupervisor, specification
from sqlalchemy import event

from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState
from service.store import Store


def test_what_was_accepted_is_flushed_to_the_disk_and_events_are_not(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    spec, chosen = parse_job_spec(specification()), []

    @event.listens_for(store.database._engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if statement.startswith("PRAGMA synchronous="):
            chosen.append(statement.partition("=")[2])

    store.add_job("a", spec, source="rest", created=1.0, reason="It was submitted.")
    supervisor = FakeSupervisor("a", spec)
    supervisor.train(2)
    store.append_events("a", supervisor.history)
    store.close_job("a", JobState.PAUSED, "It was paused.", 3.0, None)
    store.resume_job("a", 4.0, "It is resumed.")
    assert chosen == ["FULL", "NORMAL", "NORMAL", "FULL"]
    with store.database.write(durable=True) as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    with store.database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1
    store.close()
