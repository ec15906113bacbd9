"""The entry point `mics`: gathers the commands and says what the exit codes mean."""

from __future__ import annotations

from typing import Annotated

import typer

from mics_core import __version__
from service.cli import export, jobs, plan, probe, serve, watch

__all__ = ["build_app", "main"]

_EXIT_CODES = """
Exit codes: **0** fine · **1** the job failed or was cancelled (watch) · **2** wrong usage or a
refused request · **3** the service cannot be reached · **130** interrupted; the job goes on.
"""


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
    app.command("serve")(serve.serve)
    app.command("probe")(probe.probe)
    app.command("plan")(plan.plan)
    app.command("submit")(jobs.submit)
    app.command("validate")(jobs.validate)
    app.command("list")(jobs.list_jobs)
    app.command("show")(jobs.show)
    app.command("watch")(watch.watch)
    app.command("scale")(jobs.scale)
    app.command("cancel")(jobs.cancel)
    app.command("export")(export.export)
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
) -> None:
    """Submit, watch and scale elastic training jobs."""
