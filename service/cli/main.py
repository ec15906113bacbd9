"""The entry point `mics`: gathers the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mics_core import __version__
from mics_core.ending import end_process
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
from service.cli.exit_codes import epilog_of
from service.cli.invocation import Commands, remember_token_file

__all__ = ["build_app", "main"]

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
        cls=Commands,
        help="Submit, watch and scale elastic training jobs.",
        epilog=epilog_of(),
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, command in _COMMANDS.items():
        app.command(name, epilog=epilog_of(name))(command)
    app.add_typer(token.build_app(), name="token")
    return app


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    try:
        build_app()()
    except SystemExit as end:
        end_process(end.code if isinstance(end.code, int) else int(end.code is not None))


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
    remember_token_file(token_file)
