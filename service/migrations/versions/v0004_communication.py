"""How long the workers waited in a step."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; of the steps that are there it is not known."""
    op.add_column("steps", sa.Column("communication_s", sa.Float(53)))
