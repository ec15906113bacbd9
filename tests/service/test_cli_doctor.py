"""`mics doctor`: each check on a thing that is right and on one that is not."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_api import ScriptedApi, serving
from typer.testing import CliRunner

from service.cli import checks
from service.cli.checks import Finding
from service.cli.main import build_app
from service.client import MicsClient


@pytest.fixture(scope="module")
def api() -> Iterator[ScriptedApi]:
    with serving(ScriptedApi()) as api:
        yield api


def test_an_old_python_is_refused() -> None:
    assert checks.check_python().finding is Finding.OK
    old = checks.check_python((3, 10, 4))
    assert (old.finding, old.found) == (Finding.FAILED, "3.10.4 is too old")
    assert old.remedy


def test_packages_are_compared_with_what_is_required() -> None:
    (here,) = checks.check_packages()
    assert here.finding is Finding.OK, here.found
    assert "torch 2." in here.found
    (absent,) = checks.check_packages("no-such-distribution")
    assert absent.finding is Finding.FAILED


@pytest.mark.parametrize(
    ("script", "finding", "words"),
    [
        ("echo 'GPU 0: H100 (UUID: GPU-1)'", Finding.FAILED, "torch is built for CPUs"),
        ("echo 'driver/library version mismatch' >&2; exit 18", Finding.FAILED, "mismatch"),
        ("exit 0", Finding.FAILED, "says nothing"),
    ],
)
def test_gpus_that_cannot_be_used_are_told(
    tmp_path: Path, script: str, finding: Finding, words: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    found = checks.check_gpus(str(program))
    assert found.finding is finding
    assert words in found.found
    assert checks.check_gpus("no-such-program").finding is Finding.NOTE


def test_a_folder_that_is_not_there_yet_counts_as_the_one_above(tmp_path: Path) -> None:
    (found,) = checks.check_disks({"data": tmp_path / "not" / "yet"})
    assert found.name == "disk: data"
    assert str(tmp_path) in found.found
    (refused,) = checks.check_disks({"data": Path("/proc/nothing")})
    assert (refused.finding, bool(refused.remedy)) == (Finding.FAILED, True)


def test_a_port_is_free_taken_or_the_services() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = checks.check_ports("127.0.0.1", port, is_service_there=False)
        assert (taken.finding, str(port) in taken.remedy) == (Finding.FAILED, True)
        assert checks.check_ports("127.0.0.1", port, is_service_there=True).finding is Finding.OK
    assert checks.check_ports("127.0.0.1", port, is_service_there=False).finding is Finding.OK


def test_a_database_is_read_and_not_made(tmp_path: Path) -> None:
    file = tmp_path / "service.sqlite3"
    assert checks.check_database(f"sqlite:///{file}").finding is Finding.NOTE
    assert not file.exists()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE jobs (name TEXT)")
    connection.close()
    assert checks.check_database(f"sqlite:///{file}").finding is Finding.OK
    file.write_bytes(b"no database at all" * 100)
    damaged = checks.check_database(f"sqlite:///{file}")
    assert (damaged.finding, bool(damaged.remedy)) == (Finding.FAILED, True)
    unknown = checks.check_database("nosuchdatabase://user:secret@host/name")
    assert unknown.finding is Finding.FAILED
    assert "secret" not in unknown.found


def test_rays_tokens_are_asked_for(tmp_path: Path) -> None:
    assert checks.check_ray_tokens({}).finding is Finding.WARNING
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert checks.check_ray_tokens(mode).finding is Finding.FAILED
    (tmp_path / "token").write_text("x")
    assert checks.check_ray_tokens(mode).finding is Finding.OK


def test_a_service_that_is_absent_is_a_warning_and_another_server_a_failure(
    api: ScriptedApi,
) -> None:
    with MicsClient("http://127.0.0.1:9") as client:
        found, is_there = checks.check_service(client)
        assert (found.finding, is_there) == (Finding.WARNING, False)
    with MicsClient(api.url) as client:  # it knows no /healthz
        found, is_there = checks.check_service(client)
        assert (found.finding, is_there) == (Finding.FAILED, False)


def test_a_service_of_another_version_has_its_port(
    api: ScriptedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "health", {"status": "ok", "version": "9.9", "ray": "connected"})
    environment = {"MICS_URL": api.url, "MICS_DATA_DIRECTORY": str(tmp_path)}
    result = CliRunner().invoke(build_app(), ["doctor", "--skip-ray", "--json"], env=environment)
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert "9.9" in found["service"]["found"]
    assert found["service"]["finding"] == "warning"
    port = api.url.rpartition(":")[2]
    assert found[f"port {port}"]["found"].startswith("the service listens")
    assert result.exit_code == 0


def test_the_doctor_reports_all_checks_and_ends_with_1_if_one_failed(
    api: ScriptedApi, tmp_path: Path
) -> None:
    environment = {"MICS_URL": api.url, "MICS_DATA_DIRECTORY": str(tmp_path), "COLUMNS": "160"}
    result = CliRunner().invoke(build_app(), ["doctor", "--skip-ray", "--json"], env=environment)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    by_name = {check["name"]: check for check in report["checks"]}
    assert report["ok"] is False
    port = f"port {api.url.rpartition(':')[2]}"
    failed = [name for name, check in by_name.items() if check["finding"] == "failed"]
    assert failed == ["service", port], "another server has the port"
    assert {"python", "packages", "gpu", "network", "database", "ray token"} <= by_name.keys()
    text = CliRunner().invoke(build_app(), ["doctor", "--skip-ray"], env=environment).stdout
    assert "✗ failed" in text
    assert "2 failed" in text


def test_an_absent_cluster_is_told_with_what_to_do() -> None:
    words = ["doctor", "--json", "--address", "127.0.0.1:9"]
    report = json.loads(CliRunner().invoke(build_app(), words).stdout)
    (ray,) = [check for check in report["checks"] if check["name"] == "ray"]
    assert ray["finding"] == "failed"
    assert "ray start --head" in ray["remedy"]
