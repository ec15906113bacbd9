"""The tables of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(200), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("source", sa.String(8), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
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
        sa.Column("status", sa.JSON),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_index("ix_jobs_created", "jobs", ["created"])
    op.create_table(
        "steps",
        _job_key(),
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
    )
    op.create_index("steps_by_number", "steps", ["job_id", "step"])
    op.create_table(
        "events",
        _job_key(),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("time", sa.Float(53), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )


def _job_key() -> sa.Column[str]:
    return sa.Column(
        "job_id", sa.String(200), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True
    )
