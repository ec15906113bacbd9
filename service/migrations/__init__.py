"""Brings a database to the present form of the tables, whatever version of the service made it.

Every change of the tables is one script in `versions`, and Alembic runs those that a database has
not seen. Databases from before there were scripts have the tables of the first one.

Alembic is loaded only where there is something to do: a service that starts on a database of the
present form, as it does for most of its life, goes without its nine megabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from mics_core.errors import Problem, SpecificationError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["FIRST_REVISION", "upgrade"]

FIRST_REVISION = "0001"
"""The tables as they were before there were migrations."""

_LOCK = 0x6D696373  # "mics": any number that nobody else locks in this database


def upgrade(connection: Connection) -> None:
    """Bring the database of `connection` up to date, in the transaction that it is in.

    Raises:
        SpecificationError: A newer version of the service made it.
    """
    if connection.dialect.name == "postgresql":
        # Services that start at the same moment take turns; the lock ends with the transaction.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    found = _revision_of(connection)
    if found == _newest_revision():
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    if found is None and inspect(connection).has_table("jobs"):
        command.stamp(config, FIRST_REVISION)
    elif found is not None:
        _check_known(config, found)
    command.upgrade(config, "head")


def _revision_of(connection: Connection) -> str | None:
    """Return the script that a database has seen last; none if it is new or from before scripts."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def _newest_revision() -> str:
    """Return the number of the newest script; the files are named by them."""
    scripts = (Path(__file__).parent / "versions").glob("v*.py")
    return max(found[1] for path in scripts if (found := re.match(r"v(\d{4})_", path.name)))


def _check_known(config: Config, found: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found not in known:
        raise SpecificationError(
            [
                Problem(
                    "database_url",
                    f"a database of version {found}",
                    "a newer version of mics-elastic made it.",
                    "Run that version, or name another database.",
                )
            ]
        )
