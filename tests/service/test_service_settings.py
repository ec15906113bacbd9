"""Settings refuse what would be dangerous or meaningless, and say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from mics_core.errors import SpecificationError
from service.settings import Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_another_host_than_this_machine_is_refused(host: str) -> None:
    with pytest.raises(SpecificationError, match="ssh -L") as refused:
        Settings(host=host)
    assert refused.value.problems[0].field == "host"
    assert repr(host) in refused.value.problems[0].value


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_is_accepted(host: str) -> None:
    assert Settings(host=host).host == host


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
