"""The entry point `mics`: gathers the commands and says what the exit codes mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mics_core import __version__
from service.cli import (
    control,
    doctor,
    export,
    history,
    jobs,
    places,
    plan,
    probe,
    serve,
    token,
    watch,
)

__all__ = ["build_app", "main"]

_EXIT_CODES = """
Exit codes: **0** fine · **1** the job failed or was cancelled (watch), or a check failed (doctor)
· **2** wrong usage or a refused request · **3** the service or the cluster cannot be reached ·
**4** the token is missing or does not allow it · **130** interrupted; the job goes on.
"""


_COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": doctor.doctor,
    "serve": serve.serve,
    "probe": probe.probe,
    "plan": plan.plan,
    "submit": jobs.submit,
    "validate": jobs.validate,
    "list": jobs.list_jobs,
    "show": jobs.show,
    "watch": watch.watch,
    "scale": control.scale,
    "pause": control.pause,
    "resume": control.resume,
    "cancel": control.cancel,
    "delete": control.delete,
    "events": history.events,
    "logs": history.logs,
    "throughput": history.throughput,
    "checkpoints": history.checkpoints,
    "placement": places.placement,
    "cluster": places.cluster,
    "export": export.export,
}


def build_app() -> typer.Typer:
    """Return the application with all its commands."""
    app = typer.Typer(
        name="mics",
        help="Submit, watch and scale elastic training jobs.",
        epilog=_EXIT_CODES,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, command in _COMMANDS.items():
        app.command(name)(command)
    app.add_typer(token.build_app(), name="token")
    return app


def main() -> None:
    """Run the command line."""
    build_app()()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mics-elastic {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            envvar="MICS_TOKEN_FILE",
            help="File that holds the token for the service; goes before MICS_TOKEN.",
        ),
    ] = None,
) -> None:
    """Submit, watch and scale elastic training jobs."""
