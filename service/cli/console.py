"""What all commands share: the options, the client, how errors are shown and the exit codes."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from mics_core.errors import MicsError, SpecificationError
from mics_core.spec.status import JobState
from service.client import DEFAULT_URL, MicsClient, ServiceUnreachableError

__all__ = [
    "STATE_STYLES",
    "ExitCode",
    "JobIdArgument",
    "JsonOption",
    "UrlOption",
    "connected",
    "print_json",
    "reported_errors",
]


class ExitCode(enum.IntEnum):
    """How a command ended, for scripts."""

    FINE = 0
    JOB_FAILED = 1
    REFUSED = 2
    UNREACHABLE = 3


JobIdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]

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
        unreachable = isinstance(error, ServiceUnreachableError)
        raise typer.Exit(ExitCode.UNREACHABLE if unreachable else ExitCode.REFUSED) from None


@contextmanager
def connected(url: str = DEFAULT_URL) -> Iterator[MicsClient]:
    """Yield a client of the service at `url`; errors become a message and an exit code."""
    with reported_errors(), MicsClient(url) as client:
        yield client


def print_json(body: BaseModel) -> None:
    """Print an answer of the service as indented JSON."""
    typer.echo(body.model_dump_json(indent=2))


def _print_error(error: MicsError) -> None:
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
