"""The tables of the service, in their present form; `service.migrations` brings old ones to it.

Only types that SQLite and Postgres share. A job's row carries what the list shows, so that the list
needs one query; steps have columns of their own, because they are the many and are read by number;
the other events are kept as they came.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    true,
)

__all__ = [
    "deleted_jobs",
    "events",
    "jobs",
    "labels",
    "metadata",
    "sessions",
    "steps",
    "submissions",
    "tokens",
]

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
    # Who submitted it; none for jobs that were found running, or from before there were names.
    Column("owner", String(200), index=True),
    Column("labels", JSON, nullable=False, server_default="{}"),
    # Whether the cluster has its driver; a service that died before leaves it to the next one.
    Column("handed_over", Boolean, nullable=False, server_default=true()),
    # How often it was resumed: each time it has a new driver.
    Column("submission", Integer, nullable=False, server_default="0"),
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
    # Committed again later, because the run went on from an earlier step.
    Column("superseded", Boolean, nullable=False, server_default=false()),
    # None for steps on GPUs, and for those from before it was measured.
    Column("communication_s", Float(53)),
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

labels = Table(
    "labels",
    metadata,
    _job_key(),
    Column("name", String(63), primary_key=True),
    Column("value", String(255), nullable=False),
    Index("labels_by_value", "name", "value"),
)
tokens = Table(
    "tokens",
    metadata,
    # Part of the token, and no secret.
    Column("token_id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("role", String(8), nullable=False),
    # Of the secret, which is stored nowhere.
    Column("digest", String(64), nullable=False),
    Column("created", Float(53), nullable=False),
    Column("revoked", Float(53)),
)

# A name is free again when its token is revoked.
Index(
    "tokens_valid_names",
    tokens.c.name,
    unique=True,
    sqlite_where=tokens.c.revoked.is_(None),
    postgresql_where=tokens.c.revoked.is_(None),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column(
        "token_id",
        String(16),
        ForeignKey("tokens.token_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("created", Float(53), nullable=False),
    Column("expires", Float(53), nullable=False, index=True),
)


# The key that a client gave its submission, so that repeating it does nothing.
submissions = Table(
    "submissions",
    metadata,
    Column("owner", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column(
        "job_id",
        String(200),
        ForeignKey("jobs.job_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
)

# The supervisor of a job outlives it by seconds; it must not bring a deleted job back.
deleted_jobs = Table(
    "deleted_jobs",
    metadata,
    Column("job_id", String(200), primary_key=True),
    Column("time", Float(53), nullable=False),
)
