"""The tables of the service, and how a database is opened.

Only types that SQLite and Postgres share. A job's row carries what the list shows, so that the list
needs one query; steps have columns of their own, because they are the many and are read by number;
the other events are kept as they came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from mics_core.errors import Problem, SpecificationError

__all__ = ["events", "jobs", "metadata", "open_database", "steps"]

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", String(200), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("source", String(8), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("created", Float(53), nullable=False, index=True),
    Column("finished", Float(53)),
    Column("step", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),
    Column("loss", Float(53)),
    Column("tokens_per_s", Float(53)),
    Column("num_groups", BigInteger, nullable=False),
    Column("wanted_groups", BigInteger, nullable=False),
    Column("maximum_groups", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("status", JSON(none_as_null=True)),
    # Sequence number of the newest stored event.
    Column("last_sequence", BigInteger, nullable=False),
    # Somebody asked to cancel it before its supervisor was there to be told.
    Column("cancel_requested", Boolean, nullable=False),
)


def _job_key() -> Column[str]:
    return Column(
        "job_id", String(200), ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True
    )


steps = Table(
    "steps",
    metadata,
    _job_key(),
    Column("sequence", BigInteger, primary_key=True),
    # When the event was made; `time` below is when the step was committed.
    Column("event_time", Float(53), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time", Float(53), nullable=False),
    # Not-a-number is what a diverged run reports; databases keep it as null.
    Column("loss", Float(53)),
    Column("tokens", BigInteger, nullable=False),
    Column("samples", BigInteger, nullable=False),
    Column("step_s", Float(53), nullable=False),
    Column("tokens_per_s", Float(53), nullable=False),
    Column("gradient_norm", Float(53)),
    Column("learning_rate", Float(53), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("num_groups", BigInteger, nullable=False),
    Index("steps_by_number", "job_id", "step"),
)

events = Table(
    "events",
    metadata,
    _job_key(),
    Column("sequence", BigInteger, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("time", Float(53), nullable=False),
    Column("body", JSON, nullable=False),
)


def open_database(url: str) -> Engine:
    """Open the database at `url`, with its folder and its tables made where they are missing.

    Raises:
        SpecificationError: The URL is none, or the database cannot be opened.
    """
    try:
        return _open(url)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise SpecificationError([_problem(url, error)]) from error


def _open(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(parsed, pool_pre_ping=True)
    else:
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
    metadata.create_all(engine)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    # Readers go on while a follower writes. A power cut may take the last moments, not the file.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _problem(url: str, error: Exception) -> Problem:
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        shown = "it"  # may hold a password in a place where nobody looks for one
    return Problem(
        field="database_url",
        value=shown,
        rule=f"it cannot be opened ({str(error).splitlines()[0]}).",
        remedy="Name a writable folder with MICS_DATA_DIRECTORY, or a database whose driver is"
        " installed with MICS_DATABASE_URL, such as sqlite:////var/lib/mics/service.sqlite3.",
    )
