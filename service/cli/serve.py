"""`mics serve`: runs the service itself. The only command that loads it, and with it Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import reported_errors

__all__ = ["serve"]


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", envvar="MICS_HOST")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes any.", envvar="MICS_PORT")
    ] = None,
    data_directory: Annotated[
        Path | None, typer.Option(help="Folder of the database.", envvar="MICS_DATA_DIRECTORY")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(help="Database as an SQLAlchemy URL.", envvar="MICS_DATABASE_URL"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Ray cluster; `auto` finds this machine's.", envvar="MICS_RAY_ADDRESS"),
    ] = None,
    dashboard_url: Annotated[
        str | None,
        typer.Option(help="Ray's dashboard, which takes the jobs.", envvar="MICS_DASHBOARD_URL"),
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(
            help="Further names by which requests may address it, with commas.",
            envvar="MICS_ALLOWED_HOSTS",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(help="Certificate chain, to speak HTTPS.", envvar="MICS_TLS_CERTIFICATE"),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Its private key.", envvar="MICS_TLS_KEY")
    ] = None,
) -> None:
    """Run the service: REST API, live events and the page."""
    # Loaded here: every other command must start without Ray.
    from service.serve import run
    from service.settings import Settings

    with reported_errors():
        run(
            Settings.from_environment(
                host=host,
                port=port,
                data_directory=data_directory,
                database_url=database_url,
                ray_address=ray_address,
                dashboard_url=dashboard_url,
                allowed_hosts=allowed_hosts,
                tls_certificate=tls_certificate,
                tls_key=tls_key,
            )
        )
