"""Settings of the service, each with a default that works on one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mics_core.errors import Problem, SpecificationError

__all__ = ["Settings"]

_VARIABLES = {
    "host": "MICS_HOST",
    "port": "MICS_PORT",
    "data_directory": "MICS_DATA_DIRECTORY",
    "database_url": "MICS_DATABASE_URL",
    "ray_address": "MICS_RAY_ADDRESS",
    "dashboard_url": "MICS_DASHBOARD_URL",
    "driver_python": "MICS_DRIVER_PYTHON",
    "allowed_hosts": "MICS_ALLOWED_HOSTS",
    "session_s": "MICS_SESSION_S",
    "open_jobs_per_owner": "MICS_OPEN_JOBS_PER_OWNER",
    "watchers": "MICS_WATCHERS",
    "watchers_per_job": "MICS_WATCHERS_PER_JOB",
    "tls_certificate": "MICS_TLS_CERTIFICATE",
    "tls_key": "MICS_TLS_KEY",
}

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_WILDCARDS = ("0.0.0.0", "::")


class Settings(BaseModel):
    """Everything that can be chosen about one service process."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; other than this machine's own only once there is a token."""
    port: int = Field(default=8600, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    data_directory: Path = Field(default_factory=lambda: Path.home() / ".mics")
    """Folder of the database file."""
    database_url: str | None = Field(default=None, min_length=1)
    """Where the jobs are kept, as an SQLAlchemy URL; the default is a file in the folder above."""
    ray_address: str = Field(default="auto", min_length=1)
    """Address of the Ray cluster; `auto` finds the one of this machine."""
    dashboard_url: str | None = None
    """Address of the Ray Jobs API; the default is the dashboard that the cluster names."""
    driver_python: str = Field(default="python", pattern=r"^[\w./+-]+$")
    """Python on the cluster's nodes that has this package."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which requests may address the service, besides this machine's own and `host`;
    others are refused (DNS rebinding)."""
    session_s: float = Field(default=12 * 3600.0, gt=0.0)
    """How long a browser stays logged in."""
    open_jobs_per_owner: int = Field(default=100, ge=1)
    """Jobs of one owner that may be open at a time."""
    watchers: int = Field(default=2000, ge=1)
    """Event and log streams that may be open at a time."""
    watchers_per_job: int = Field(default=1000, ge=1)
    """The same, of one job."""
    tls_certificate: Path | None = None
    """Certificate chain in PEM form, with which the service speaks HTTPS."""
    tls_key: Path | None = None
    """Its private key."""
    discovery_interval_s: float = Field(default=1.0, gt=0.0)
    """Pause between two looks for jobs on the cluster."""
    poll_timeout_s: float = Field(default=10.0, gt=0.0)
    """Longest wait of one request for a job's events."""
    poll_pause_s: float = Field(default=0.1, ge=0.0)
    """Pause between two requests for a job's events; fast steps are stored in batches."""
    lost_after_s: float = Field(default=10.0, ge=0.0)
    """How long a job may be without a supervisor and a driver before it counts as failed."""
    start_patience_s: float = Field(default=60.0, ge=0.0)
    """The same for a job that is only being submitted."""
    hold_s: float = Field(default=5.0, ge=0.0)
    """How long a scale request waits for a supervisor that is just starting."""
    shared_poll_s: float = Field(default=0.25, gt=0.0)
    """Pause between two looks for events that other services on the same database have stored."""
    ping_interval_s: float = Field(default=10.0, gt=0.0)
    """Pause between two keep-alive comments on a silent event stream."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, names: object) -> object:
        if isinstance(names, str):
            return tuple(name.strip().lower() for name in names.split(",") if name.strip())
        return names

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """All names by which requests may address the service."""
        own = () if self.host in _WILDCARDS else (self.host.lower(),)
        return tuple(dict.fromkeys((*_LOOPBACK_NAMES, *own, *self.allowed_hosts)))

    @property
    def database(self) -> str:
        """The URL of the database, with its default filled in."""
        path = self.data_directory.expanduser() / "service.sqlite3"
        return self.database_url or f"sqlite:///{path}"

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, **chosen: object
    ) -> Self:
        """Read the settings from `MICS_…` variables.

        Args:
            environment: The variables; those that are empty count as not set.
            chosen: Settings that go before the environment; none counts as not chosen.

        Raises:
            SpecificationError: Names the setting, its value, the rule and the remedy.
        """
        values: dict[str, object] = {
            name: environment[variable]
            for name, variable in _VARIABLES.items()
            if environment.get(variable)
        }
        values |= {name: value for name, value in chosen.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecificationError(
                [_problem(dict(detail)) for detail in error.errors()]
            ) from None


def _problem(detail: Mapping[str, Any]) -> Problem:
    name = ".".join(str(part) for part in detail["loc"])
    rule = detail["msg"][0].lower() + detail["msg"][1:]
    variable = _VARIABLES.get(name)
    return Problem(
        field=name,
        value=repr(detail["input"]),
        rule=f"{rule}.",
        remedy=f"Correct it where it is given, or {variable}." if variable else "Correct it.",
    )
