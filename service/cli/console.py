"""What all commands share: the options, the client and how errors are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mics_core.errors import MicsError, Problem, SpecificationError
from mics_core.spec.status import JobState
from service.cli.exit_codes import ExitCode
from service.cli.invocation import invocation, print_error_json
from service.client import (
    DEFAULT_URL,
    ForbiddenError,
    MicsClient,
    ServiceUnreachableError,
    TokenError,
)

__all__ = [
    "STATE_STYLES",
    "JobIdArgument",
    "JsonOption",
    "UrlOption",
    "connected",
    "fits_window",
    "interruptible",
    "print_json",
    "print_table",
    "reported_errors",
    "table_of",
]


_COMPLETES_WITHIN_S = 2.0

_WIDEST = 400
"""Columns that a table takes at most where nothing of it may be cut."""


def _known_ids(context: typer.Context, incomplete: str) -> list[str]:
    """Return the ids that begin so, for the shell; nothing if the service does not answer soon."""
    # No command runs here, so what `mics --token-file` says is only known by its context.
    token_file = context.find_root().params.get("token_file")
    try:
        token = _token_of(token_file) if token_file is not None else None
        url = context.params.get("url")
        with MicsClient(url, token=token, timeout_s=_COMPLETES_WITHIN_S) as client:
            jobs = client.jobs().jobs
    except MicsError:
        return []
    return [job.job_id for job in jobs if job.job_id.startswith(incomplete)]


JobIdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id.", autocompletion=_known_ids)
]

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the service's answer as JSON, for programs.")
]

UrlOption = Annotated[
    str, typer.Option("--url", envvar="MICS_URL", help="Address of the service.", metavar="URL")
]

STATE_STYLES = {
    JobState.PENDING: "yellow",
    JobState.RUNNING: "green",
    JobState.WAITING: "yellow",
    JobState.PAUSED: "cyan",
    JobState.FINISHED: "blue",
    JobState.CANCELLED: "bright_black",
    JobState.FAILED: "red",
}
"""Colour of each state; the state's name always stands beside it."""


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turn errors of the project into a message and an exit code; no trace is shown."""
    try:
        yield
    except MicsError as error:
        _print_error(error)
        raise typer.Exit(_exit_code_of(error)) from None


@contextmanager
def connected(url: str = DEFAULT_URL) -> Iterator[MicsClient]:
    """Yield a client of the service at `url`; errors become a message and an exit code."""
    with reported_errors(), MicsClient(url, token=_token_of_file()) as client:
        yield client


def _token_of_file() -> str | None:
    """Return what the file of `mics --token-file` holds; none without that option."""
    path = invocation().token_file
    return None if path is None else _token_of(path)


def _token_of(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"it cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})."
        token = ""
    else:
        problem = "it is empty."
    if not token:
        remedy = "Write the token into it, which `mics token create` printed."
        raise SpecificationError([Problem("--token-file", str(path), problem, remedy)])
    return token


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a command that follows a job; the job goes on."""
    try:
        yield
    except KeyboardInterrupt:
        _print_interruption()
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def print_json(body: BaseModel | dict[str, Any], *, as_line: bool = False) -> None:
    """Print an answer as JSON: one indented document, or one line of a stream."""
    indent = None if as_line else 2
    if isinstance(body, BaseModel):
        typer.echo(body.model_dump_json(indent=indent))
    else:
        typer.echo(json.dumps(body, indent=indent, ensure_ascii=False))


def table_of(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table in the one style.

    Args:
        columns: Its headings.
        right: Those of them with numbers.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table


def print_table(table: Table, *, always_whole: bool = False) -> None:
    """Print a table: cells are cut to fit a terminal's window, and nowhere else.

    Args:
        table: It.
        always_whole: Whether a narrow terminal breaks its lines instead.
    """
    console = Console(highlight=False)
    if always_whole or not console.is_terminal:
        console.width = max(console.width, _WIDEST)
    console.print(table)


def fits_window(table: Table) -> bool:
    """Whether a table can be shown with every cell whole."""
    console = Console()
    widest = console.options.update(max_width=_WIDEST)
    needed = Measurement.get(console, widest, table).maximum
    return not console.is_terminal or needed <= console.width


def _exit_code_of(error: MicsError) -> ExitCode:
    if isinstance(error, ServiceUnreachableError):
        return ExitCode.UNREACHABLE
    if isinstance(error, TokenError | ForbiddenError):
        return ExitCode.DENIED
    return ExitCode.REFUSED


def _print_interruption() -> None:
    words, remedy = "Stopped following; the job goes on.", "Follow it again with `mics watch`."
    if not invocation().as_json:
        typer.echo(words, err=True)
        return
    error = MicsError(words, remedy=remedy)
    error.code = "interrupted"
    print_error_json(error)


def _print_error(error: MicsError) -> None:
    if invocation().as_json:
        print_error_json(error)
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if isinstance(error, SpecificationError):
        for problem in error.problems:
            rule = f"{problem.value} is refused: {problem.rule}"
            _print_problem(console, problem.field, rule, problem.remedy)
    else:
        _print_problem(console, error.field, error.message, error.remedy)


def _print_problem(console: Console, field: str | None, message: str, remedy: str | None) -> None:
    # Text, not markup: messages quote values that may hold square brackets.
    console.print(Text.assemble(("error ", "bold red"), message))
    if field:
        console.print(Text.assemble(("  field   ", "bright_black"), field))
    if remedy:
        console.print(Text.assemble(("  remedy  ", "bright_black"), remedy))
