"""The group of all commands: what holds for a whole call, and its errors as JSON where it asked so.

With `--json` standard output holds the answer and nothing else, and standard error is empty or
holds one error in the form of the API, also where the command line itself is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from mics_core.errors import MicsError
from service.cli.exit_codes import ExitCode
from service.schemas import ErrorBody, ErrorDetail

__all__ = ["Commands", "Invocation", "invocation", "print_error_json", "remember_token_file"]


@dataclass(frozen=True, slots=True)
class Invocation:
    """What was asked of the whole call.

    Args:
        as_json: Whether the answer is for programs.
        token_file: File of the token for the service.
    """

    as_json: bool = False
    token_file: Path | None = None


# Not typer's own context: where that is to be had depends on its version.
_CURRENT: ContextVar[Invocation | None] = ContextVar("mics_invocation", default=None)

# Typer may bring a copy of click with it; this is its class of errors in any case.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]


def invocation() -> Invocation:
    """Return what was asked of the call under way."""
    return _CURRENT.get() or Invocation()


def remember_token_file(path: Path | None) -> None:
    """Note which file holds the token for the service."""
    _CURRENT.set(replace(invocation(), token_file=path))


def print_error_json(error: MicsError) -> None:
    """Print an error in the form of the API, as one line on standard error."""
    detail = ErrorDetail.of(error, "`mics doctor` checks the set-up.")
    typer.echo(ErrorBody(error=detail).model_dump_json(), err=True)


class Commands(TyperGroup):
    """The group of all commands."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **named: Any) -> Any:
        """Run the command that the words name, and end the process with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        is_json = "--json" in words
        before = _CURRENT.set(Invocation(as_json=is_json))
        try:
            if not is_json or more or not named.get("standalone_mode", True):
                return super().main(words, *more, **named)
            try:
                code = super().main(words, **(named | {"standalone_mode": False}))
            except _USAGE_ERROR as error:
                print_error_json(_usage_error(error))
                code = ExitCode.REFUSED
            sys.exit(code or ExitCode.FINE)
        finally:
            _CURRENT.reset(before)


def _usage_error(error: Any) -> MicsError:
    parameter = getattr(error, "param", None)
    command = error.ctx.command_path if error.ctx is not None else "mics"
    named = MicsError(
        error.format_message(),
        remedy=f"`{command} --help` shows how it is called.",
        field=parameter.name if parameter is not None else None,
    )
    named.code = "wrong_usage"
    return named
