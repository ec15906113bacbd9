"""`mics token` makes, lists and revokes the tokens of a service's database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.cli.main import build_app
from service.settings import Settings
from service.store import Store

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*words: str) -> Result:
        return CliRunner().invoke(
            build_app(), ["token", *words], env={"MICS_DATA_DIRECTORY": str(tmp_path)}
        )

    return run


def create(run: Run, name: str, role: str, *more: str) -> str:
    result = run("create", "--name", name, "--role", role, *more)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_token_is_printed_alone_so_that_it_can_go_into_a_file(run: Run, tmp_path: Path) -> None:
    plain = create(run, "ada-laptop", "user", "--owner", "ada")
    assert plain.count("\n") == 1
    store = Store(Settings(data_directory=tmp_path).database)
    try:
        token = TokenStore(store.database).verify(plain.strip())
    finally:
        store.close()
    assert token is not None
    assert (token.name, token.owner, token.role) == ("ada-laptop", "ada", Role.USER)


def test_programs_are_told_the_same(run: Run) -> None:
    made = json.loads(create(run, "prometheus", "viewer", "--json"))
    assert made.pop("token").startswith("mics_")
    assert made == {"name": "prometheus", "owner": "prometheus", "role": "viewer"}
    create(run, "ada", "admin")
    revoked = json.loads(run("revoke", "prometheus", "--json").stdout)
    assert revoked["name"] == "prometheus"
    assert revoked["revoked"] >= revoked["created"]
    listed = json.loads(run("list", "--json").stdout)["tokens"]
    assert [(one["name"], one["revoked"] is None) for one in listed] == [
        ("prometheus", False),
        ("ada", True),
    ]
    assert listed[0] == revoked


def test_the_list_shows_who_may_what_and_no_secret(run: Run) -> None:
    assert "mics token create" in run("list").stdout
    plain = create(run, "ada-laptop", "user", "--owner", "ada").strip()
    assert "ada-laptop" in run("revoke", "ada-laptop").stdout
    create(run, "ben", "viewer")
    shown = run("list").stdout
    for line, words in zip(
        shown.splitlines()[1:],
        [("ada-laptop", "ada", "user", "revoked"), ("ben", "viewer", "valid")],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert plain.split("_", 2)[2] not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("revoke", "nobody"), "nobody"),
        (("create", "--name", "", "--role", "user"), "1 to 100 printable characters"),
        (("create", "--name", "a\nb", "--role", "user"), "1 to 100 printable characters"),
        (("create", "--name", "ada", "--role", "king"), "king"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert said in result.output
    assert json.loads(run("list", "--json").stdout) == {"tokens": []}


def test_a_name_is_taken_once(run: Run) -> None:
    create(run, "ada", "user")
    again = run("create", "--name", "ada", "--role", "user")
    assert again.exit_code == 2
    assert "ada" in again.output
    run("revoke", "ada")
    create(run, "ada", "user")
