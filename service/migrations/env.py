"""What Alembic runs to apply scripts: on the connection that `service.migrations` gives it."""

from __future__ import annotations

from alembic import context

from service.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
)
context.run_migrations()
