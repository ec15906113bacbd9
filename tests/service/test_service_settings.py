"""Settings refuse what would be dangerous or meaningless, and say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mics_core.errors import SpecificationError
from service.auth.binding import require_token_beyond_loopback
from service.auth.callers import Role
from service.auth.tokens import TokenStore
from service.serve import run
from service.settings import Settings
from service.store import Store


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_another_host_than_this_machine_needs_a_token_first(host: str, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/service.sqlite3")
    with pytest.raises(SpecificationError, match="mics token create") as refused:
        require_token_beyond_loopback(host, store.database)
    assert refused.value.problems[0].field == "host"
    assert repr(host) in refused.value.problems[0].value
    assert "ssh -L" in refused.value.problems[0].remedy
    TokenStore(store.database).create("first", Role.ADMIN)
    require_token_beyond_loopback(host, store.database)
    store.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/service.sqlite3")
    require_token_beyond_loopback(host, store.database)
    store.close()


def test_the_service_itself_refuses_to_listen_openly(tmp_path: Path) -> None:
    with pytest.raises(SpecificationError, match="mics token create"):
        run(Settings(host="0.0.0.0", port=0, data_directory=tmp_path))


def test_names_of_the_service_are_this_machines_its_hosts_and_the_chosen_ones() -> None:
    assert Settings().known_hosts == ("localhost", "127.0.0.1", "::1")
    environment = {"MICS_ALLOWED_HOSTS": "mics.example, Train ,"}
    settings = Settings.from_environment(environment, host="10.0.0.5")
    assert settings.known_hosts[3:] == ("10.0.0.5", "mics.example", "train")
    assert "0.0.0.0" not in Settings(host="0.0.0.0").known_hosts


def test_the_environment_gives_way_to_what_was_chosen() -> None:
    environment = {"MICS_PORT": "9000", "MICS_RAY_ADDRESS": "10.0.0.1:6379", "MICS_HOST": ""}
    settings = Settings.from_environment(environment, port=9001, host=None)
    assert (settings.port, settings.ray_address) == (9001, "10.0.0.1:6379")
    assert settings.host == "127.0.0.1"


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(SpecificationError, match="port: '99999' is refused") as refused:
        Settings.from_environment({"MICS_PORT": "99999"})
    assert "MICS_PORT" in refused.value.problems[0].remedy


def test_the_database_is_a_file_of_the_data_directory_unless_it_is_named(tmp_path: Path) -> None:
    assert Settings(data_directory=tmp_path).database == f"sqlite:///{tmp_path}/service.sqlite3"
    assert Settings(database_url="postgresql://db/mics").database == "postgresql://db/mics"
