"""`mics token`: makes, lists and revokes tokens, in the database of the service itself.

Not through the API: whoever can write the database may do anything anyway, and the first token has
to come from somewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.auth.callers import Role
from service.cli.console import print_json, print_table, reported_errors
from service.cli.exit_codes import epilog_of
from service.cli.text import duration

if TYPE_CHECKING:
    from service.auth.tokens import TokenStore

__all__ = ["build_app"]

DataDirectoryOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the service's database.", envvar="MICS_DATA_DIRECTORY"),
]
TokenJsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DatabaseUrlOption = Annotated[
    str | None,
    typer.Option(help="Its database as an SQLAlchemy URL.", envvar="MICS_DATABASE_URL"),
]


def build_app() -> typer.Typer:
    """Return the group of commands."""
    app = typer.Typer(help="Make, list and revoke tokens of the service.", no_args_is_help=True)
    for name, command in (("create", create), ("list", list_tokens), ("revoke", revoke)):
        app.command(name, epilog=epilog_of(f"token {name}"))(command)
    return app


def create(
    name: Annotated[str, typer.Option(help="What it is for, such as `laptop-of-ada`.")],
    role: Annotated[
        Role, typer.Option(help="viewer reads; user also submits and controls own jobs; admin all.")
    ],
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs it submits; by default its name.")
    ] = None,
    as_json: TokenJsonOption = False,
    data_directory: DataDirectoryOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """Make a token and print it, this once: the service keeps a hash alone."""
    with _token_store(data_directory, database_url) as tokens:
        plain = tokens.create(_checked("name", name), role, owner and _checked("owner", owner))
    # To standard output, and nothing else there, so that it can go into a file.
    if as_json:
        print_json({"token": plain, "name": name, "owner": owner or name, "role": role.value})
    else:
        typer.echo(plain)
        typer.echo("It is not shown again. Give it by MICS_TOKEN or `mics --token-file`.", err=True)


def list_tokens(
    as_json: TokenJsonOption = False,
    data_directory: DataDirectoryOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """List all tokens, revoked ones too; their secrets are not known."""
    with _token_store(data_directory, database_url) as tokens:
        found = tokens.all()
    if as_json:
        print_json({"tokens": [asdict(token) for token in found]})
        return
    if not found:
        typer.echo("No tokens yet. Make one with `mics token create`.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "NAME", "OWNER", "ROLE", "AGE", "STATE"):
        table.add_column(column, no_wrap=True)
    now = time.time()
    for token in found:
        table.add_row(
            token.token_id,
            Text(token.name),
            Text(token.owner),
            token.role.value,
            duration(now - token.created),
            "valid" if token.revoked is None else "revoked",
        )
    print_table(table)


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name or id of the token.")],
    as_json: TokenJsonOption = False,
    data_directory: DataDirectoryOption = None,
    database_url: DatabaseUrlOption = None,
) -> None:
    """End a token, and every session of a browser that it opened, at once."""
    with _token_store(data_directory, database_url) as tokens:
        token = tokens.revoke(name)
    if as_json:
        print_json(asdict(token))
    else:
        typer.echo(f"{token.name} ({token.token_id}) is revoked.")


@contextmanager
def _token_store(data_directory: Path | None, database_url: str | None) -> Iterator[TokenStore]:
    # Loaded here: commands that only talk to a service must start without a database's libraries.
    from service.auth.tokens import TokenStore
    from service.database import Database
    from service.settings import Settings

    with reported_errors():
        settings = Settings.from_environment(
            data_directory=data_directory, database_url=database_url
        )
        database = Database(settings.database)
        try:
            yield TokenStore(database)
        finally:
            database.close()


def _checked(what: str, text: str) -> str:
    if not 1 <= len(text) <= 100 or not text.isprintable() or text != text.strip():
        raise typer.BadParameter(
            f"{text[:120]!r}: a name has 1 to 100 printable characters. Choose another.",
            param_hint=f"--{what}",
        )
    return text
