"""A Postgres server of the tests' own: in a temporary folder, on no port, ended with them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from service.database import Database

__all__ = ["DATABASES", "MissingServerError", "PostgresServer", "database_of", "run_postgres"]

DATABASES = ["sqlite", "postgres"]
"""Kinds of databases, as parameters of fixtures."""

_STARTS_WITHIN_S = 30.0
_STOPS_WITHIN_S = 20.0
# Nothing of it has to outlive the tests.
_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=60")


class MissingServerError(Exception):
    """This machine cannot run a server, and why."""


class PostgresServer:
    """A running server.

    Args:
        folder: Where its socket is.
        process: Its first process.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]):
        self._folder = folder
        self._process = process
        self._template: str | None = None

    def stop(self) -> None:
        """End it; connections that are left are closed."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(_STOPS_WITHIN_S)

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        return self._address(self._create("template1"))

    def new_database_with_tables(self) -> str:
        """Make a database with the service's tables, which are made once; return its URL."""
        if self._template is None:
            template = self._create("template1")
            Database(self._address(template)).close()
            self._template = template
        return self._address(self._create(self._template))

    def is_up(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self._address("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create(self, template: str) -> str:
        name = f"mics_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        return name

    def _address(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self._folder}"


def database_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """Return the URL of a new database of the kind that the parameter of a fixture names."""
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'service.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database_with_tables()


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Run a server as long as the context is open.

    Raises:
        MissingServerError: Its programs, or a user to run them as, are missing.
    """
    programs, user = _programs(), _user()
    # A short path of its own: a socket's address has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="mics-pg-"))
    try:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data, log = folder / "data", folder / "server.log"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            user=user,
        )
        settings = [part for one in _SETTINGS for part in ("-c", one)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, "-h", "", *settings],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                user=user,
            )
        server = PostgresServer(folder, process)
        try:
            deadline = time.monotonic() + _STARTS_WITHIN_S
            while not server.is_up():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"Postgres is not up:\n{log.read_text()}"
                time.sleep(0.05)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise MissingServerError("there is no `initdb`: install Debian's postgresql")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def _user() -> str | None:
    """Return whom to run the server as, for it refuses to run as root; none for oneself."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise MissingServerError("there is no user `postgres` to run the server as") from None
