"""Opens the database of the service, and hides what SQLite and Postgres do differently.

SQLite belongs to one service, which locks its file for as long as it lives (`FileLock`). There may
be several on Postgres, so what only one of them may do at a time is guarded by row locks, and by
advisory locks where it takes longer than a transaction: Postgres gives those up by itself when the
process behind a connection dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from mics_core.errors import Problem, SpecificationError
from service.migrations import upgrade

__all__ = ["Database", "FileLock"]

_WRITES = "mics_writes"
_DURABLE = "mics_durable"
_BUSY_S = 30


class Database:
    """An open database with its tables in their present form.

    Args:
        url: As SQLAlchemy takes it.

    Raises:
        SpecificationError: The URL is none, or the database cannot be opened.
    """

    def __init__(self, url: str):
        self._claimed: set[str] = set()
        self._claiming = threading.Lock()
        self._writing = threading.Lock()
        try:
            self._url = _url_of(url)
            self._engine = _build_engine(self._url)
            with self.write() as connection:
                upgrade(connection)
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise SpecificationError([_problem(url, error)]) from error

    @property
    def is_shared(self) -> bool:
        """Whether other services may work on it too."""
        return self._url.get_backend_name() != "sqlite"

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for questions."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Connection]:
        """Open a transaction that writes; it is kept at the end, and undone by an error.

        Args:
            durable: Whether it has to outlive a power cut from its end on, as on Postgres all do.
        """
        # SQLite lets one write at a time anyway; waiting here is fairer than its polling.
        with (
            nullcontext() if self.is_shared else self._writing,
            self._engine.connect().execution_options(
                **{_WRITES: True, _DURABLE: durable}
            ) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim the work of this name while the context is open, before any other service.

        Yields:
            Whether nobody else has it. A claim ends with the process that has it.
        """
        if not self.is_shared:
            with self._claim_here(name) as is_mine:
                yield is_mine
            return
        values = {"key": _key_of(name)}
        # A connection of its own: those of the pool are for work that ends at once.
        engine = create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), values))

    def lock(self, connection: Connection, name: str) -> None:
        """Wait until no other transaction has the lock of this name, and keep it to the end.

        Args:
            connection: In a transaction that writes. On SQLite those come one at a time anyway.
            name: Of what is locked.
        """
        if self.is_shared:
            values = {"key": _key_of(name)}
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), values)

    @contextmanager
    def _claim_here(self, name: str) -> Iterator[bool]:
        with self._claiming:
            is_mine = name not in self._claimed
            self._claimed.add(name)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._claimed.discard(name)


class FileLock:
    """Keeps a second service from the same SQLite file; does nothing for other databases.

    The lock ends with the process, however that ends.

    Args:
        url: The database.

    Raises:
        SpecificationError: Another service has the file.
    """

    def __init__(self, url: str):
        self._file: IO[bytes] | None = None
        path = _url_of(url).database
        if _url_of(url).get_backend_name() != "sqlite" or not path:
            return
        self._file = Path(f"{path}.lock").open("ab")  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise SpecificationError(
                [
                    Problem(
                        "database_url",
                        path,
                        "another service uses this file, and SQLite is for one.",
                        "Stop that one, name another MICS_DATA_DIRECTORY, or share a Postgres"
                        " database with MICS_DATABASE_URL.",
                    )
                ]
            ) from None

    def release(self) -> None:
        """Let others have the file."""
        if self._file is not None:
            self._file.close()


def _key_of(name: str) -> int:
    """Return the number by which Postgres knows the advisory lock of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _url_of(url: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _build_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": _BUSY_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's driver would begin transactions late and leave changes of tables outside them.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Readers go on while a follower writes. A power cut may take the last moments, not the file.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could find the file changed in between.
    options = connection.get_execution_options()
    if not options.get(_WRITES):
        connection.exec_driver_sql("BEGIN")
        return
    # Flushing the log costs milliseconds: little for a submission, too much for each batch of
    # events, which a supervisor tells again. It can be chosen between transactions only.
    synchronous = "FULL" if options.get(_DURABLE) else "NORMAL"
    connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


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
        " installed with MICS_DATABASE_URL, such as sqlite:////var/lib/mics/service.sqlite3, or"
        " postgresql://user@host/mics with the extra `mics-elastic[postgres]`.",
    )
