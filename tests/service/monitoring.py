"""A real Prometheus that scrapes what a test names, with the files of `dashboards/`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mics_core.cluster.local import free_port

__all__ = [
    "BOARDS",
    "FOLDER",
    "ask",
    "asked_of",
    "expressions",
    "need",
    "numbers_of",
    "panels",
    "rules",
    "running_prometheus",
]

FOLDER = Path(__file__).resolve().parent.parent.parent / "dashboards"


BOARDS = sorted((FOLDER / "grafana").glob("*.json"))


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(board: Path) -> list[dict[str, Any]]:
    return list(json.loads(board.read_text(encoding="utf-8"))["panels"])


def expressions() -> list[tuple[str, str]]:
    """Every expression with the name of its panel or rule."""
    found = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    for board in BOARDS:
        for panel in panels(board):
            found += [
                (f"{board.name}, {panel['title']}", target["expr"])
                for target in panel.get("targets", ())
            ]
    return found


def asked_of(expression: str, job_id: str) -> str:
    """The expression as Grafana asks it, of one job."""
    asked = expression.replace("$__rate_interval", "1m").replace("$__range", "1h")
    return asked.replace("$job", job_id)


def numbers_of(prometheus: httpx.Client, expression: str) -> list[str]:
    """What an expression gives; not a number, as a quantile of nothing is, shows as no data."""
    values = (series["value"][1] for series in ask(prometheus, expression))
    return [value for value in values if value != "NaN"]


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed; apt-get install prometheus")
    return found


@contextmanager
def running_prometheus(
    folder: Path, services: list[str], token: str, ray_nodes: list[str]
) -> Iterator[httpx.Client]:
    """Run it with the shipped files, in which only addresses and intervals are others.

    Args:
        folder: For its files.
        services: Addresses of the services that it scrapes.
        token: A viewer's.
        ray_nodes: Files in which Ray lists its nodes.
    """
    program = need("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "mics.token").write_text(token)
    shutil.copy(FOLDER / "rules.yml", folder)
    mics, ray = config["scrape_configs"]
    mics["static_configs"] = [{"targets": services}]
    (folder / "none.json").write_text("[]")
    ray["file_sd_configs"] = [{"files": ray_nodes or [str(folder / "none.json")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    checked = subprocess.run(
        [need("promtool"), "check", "config", str(folder / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def ask(prometheus: httpx.Client, expression: str) -> list[dict[str, Any]]:
    try:
        answer = prometheus.get("/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return []  # it is still starting
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    return list(answer.json()["data"]["result"])
