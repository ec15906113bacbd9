"""What a team needs: owners, labels, keys of submissions, jobs that were deleted or are paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns with what is true of all jobs that are there, and the new tables."""
    # No batch mode: on SQLite it makes the table anew, and dropping the old one would take the
    # events and steps of its jobs along.
    op.add_column("jobs", sa.Column("owner", sa.String(200)))
    op.add_column("jobs", sa.Column("labels", sa.JSON, nullable=False, server_default="{}"))
    # Old jobs were handed over before they were seen, or have failed.
    handed_over = sa.Column("handed_over", sa.Boolean, nullable=False, server_default=sa.true())
    op.add_column("jobs", handed_over)
    op.add_column("jobs", sa.Column("submission", sa.Integer, nullable=False, server_default="0"))
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
    superseded = sa.Column("superseded", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("steps", superseded)
    op.create_table(
        "labels",
        _job_key(),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("value", sa.String(255), nullable=False),
    )
    op.create_index("labels_by_value", "labels", ["name", "value"])
    op.create_table(
        "submissions",
        sa.Column("owner", sa.String(200), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column(
            "job_id",
            sa.String(200),
            sa.ForeignKey("jobs.job_id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
    )
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.String(200), primary_key=True),
        sa.Column("time", sa.Float(53), nullable=False),
    )


def _job_key() -> sa.Column[str]:
    return sa.Column(
        "job_id", sa.String(200), sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True
    )
