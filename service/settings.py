"""Settings of the service, each with a default that works on one machine."""

from __future__ import annotations

import ipaddress
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
}


class Settings(BaseModel):
    """Everything that can be chosen about one service process."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    host: str = "127.0.0.1"
    """Address to listen on; only this machine's own, since there are no accounts yet."""
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
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names by which requests may address the service; others are refused (DNS rebinding)."""
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
    ping_interval_s: float = Field(default=10.0, gt=0.0)
    """Pause between two keep-alive comments on a silent event stream."""

    @field_validator("host")
    @classmethod
    def _loopback_only(cls, host: str) -> str:
        if host == "localhost":
            return host
        try:
            is_loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            is_loopback = False
        if not is_loopback:
            # No ValueError: pydantic would wrap it, and the remedy would be lost.
            raise SpecificationError(
                [
                    Problem(
                        field="host",
                        value=repr(host),
                        rule="the service has no accounts yet and listens on this machine only.",
                        remedy="Listen on 127.0.0.1, and reach it from elsewhere with `ssh -L`.",
                    )
                ]
            )
        return host

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
