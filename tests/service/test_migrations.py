"""Old databases are brought to the present form without loss, and new ones are made in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from fakes import FakeSupervisor, specification

from mics_core.errors import SpecificationError
from mics_core.spec import parse_job_spec
from mics_core.spec.status import JobState
from service.database import Database
from service.listing import JobFilter
from service.rows import row_of_event, row_of_step
from service.store import Store
from service.tables import metadata

SPEC = parse_job_spec(specification())

# The tables as `metadata.create_all` made them before there were migrations.
OLD = sa.MetaData()
_KEY = ("job_id", sa.String(200))
OLD_JOBS = sa.Table(
    "jobs",
    OLD,
    sa.Column(*_KEY, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("source", sa.String(8), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created", sa.Float(53), nullable=False, index=True),
    sa.Column("finished", sa.Float(53)),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("steps", sa.BigInteger, nullable=False),
    sa.Column("loss", sa.Float(53)),
    sa.Column("tokens_per_s", sa.Float(53)),
    sa.Column("num_groups", sa.BigInteger, nullable=False),
    sa.Column("wanted_groups", sa.BigInteger, nullable=False),
    sa.Column("maximum_groups", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("status", sa.JSON(none_as_null=True)),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
)
OLD_STEPS = sa.Table(
    "steps",
    OLD,
    sa.Column(*_KEY, sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("event_time", sa.Float(53), nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("time", sa.Float(53), nullable=False),
    sa.Column("loss", sa.Float(53)),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
    sa.Column("step_s", sa.Float(53), nullable=False),
    sa.Column("tokens_per_s", sa.Float(53), nullable=False),
    sa.Column("gradient_norm", sa.Float(53)),
    sa.Column("learning_rate", sa.Float(53), nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("num_groups", sa.BigInteger, nullable=False),
    sa.Index("steps_by_number", "job_id", "step"),
)
OLD_EVENTS = sa.Table(
    "events",
    OLD,
    sa.Column(*_KEY, sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("time", sa.Float(53), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A plain engine of the same database, as the version before opened it."""
    url = sa.make_url(database_url)
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        Path(url.database).parent.mkdir(parents=True)
    else:
        url = url.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def played() -> FakeSupervisor:
    supervisor = FakeSupervisor("a", SPEC)
    supervisor.train(5)
    return supervisor


def fill(engine: sa.Engine, supervisor: FakeSupervisor) -> None:
    """Store a running job as the version before did."""
    OLD.create_all(engine)
    spec = SPEC.model_dump(mode="json")
    del spec["labels"]
    status = json.loads(supervisor.status().model_dump_json())
    del status["model_flops_per_sample"], status["peak_flops_per_s"]
    with engine.begin() as connection:
        job = {
            "job_id": "a",
            "name": "Old",
            "source": "rest",
            "state": "running",
            "reason": "It trains.",
            "created": 1.5,
            "finished": None,
            "step": 5,
            "steps": 10,
            "loss": 2.0,
            "tokens_per_s": 2048.0,
            "num_groups": 2,
            "wanted_groups": 2,
            "maximum_groups": 4,
            "generation": 1,
            "spec": spec,
            "status": status,
            "last_sequence": len(supervisor.history),
            "cancel_requested": False,
        }
        connection.execute(sa.insert(OLD_JOBS).values(**job))
        for event in supervisor.history:
            if event.kind == "step":
                row = row_of_step("a", event)
                del row["communication_s"]
                connection.execute(sa.insert(OLD_STEPS).values(**row))
            else:
                connection.execute(sa.insert(OLD_EVENTS).values(**row_of_event("a", event)))


def test_a_database_from_before_migrations_keeps_everything(
    engine: sa.Engine, database_url: str
) -> None:
    supervisor = played()
    fill(engine, supervisor)
    store = Store(database_url)
    job = store.job("a")
    assert (job.name, job.state, job.step, job.created) == ("Old", JobState.RUNNING, 5, 1.5)
    assert (job.owner, job.labels, job.spec) == (None, {}, SPEC)
    assert job.status == supervisor.status().model_copy(update={"reason": "It trains."})
    assert store.events_after("a", 0, 100) == supervisor.history
    assert len(store.throughput("a", 10, None, None, 0.0).records) == 5
    open_job = store.open_job("a")
    assert open_job is not None
    assert (open_job.handed_over, open_job.driver_id) == (True, "a")
    supervisor.train(1)
    assert len(store.append_events("a", supervisor.history)) == 1
    store.close()
    again = Store(database_url)
    assert [job.job_id for job in again.list_jobs(JobFilter())] == ["a"]
    again.close()


@pytest.mark.parametrize("is_old", [True, False])
def test_migrations_lead_to_the_tables_that_the_code_describes(
    engine: sa.Engine, database_url: str, is_old: bool
) -> None:
    if is_old:
        fill(engine, played())
    Database(database_url).close()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_database_of_a_newer_version_is_refused(engine: sa.Engine, database_url: str) -> None:
    Database(database_url).close()
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SpecificationError, match="newer version of mics-elastic"):
        Database(database_url)


def test_a_migration_that_fails_changes_nothing(
    engine: sa.Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(engine, played())
    before = sa.inspect(engine).get_columns("jobs")
    with engine.begin() as connection:
        # In the way of a table that the second script makes at its end.
        connection.execute(sa.text("CREATE TABLE deleted_jobs (mine INTEGER)"))
    with pytest.raises(SpecificationError, match="deleted_jobs"):
        Database(database_url)
    after = sa.inspect(engine)
    assert [c["name"] for c in after.get_columns("jobs")] == [c["name"] for c in before]
    assert not after.has_table("labels")
    assert not after.has_table("alembic_version")
