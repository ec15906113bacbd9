"""`mics doctor`: looks at the whole set-up and says what to do where something is not right."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mics_core.errors import MicsError
from service.cli.checks import (
    Check,
    Finding,
    check_addresses,
    check_database,
    check_disks,
    check_gpus,
    check_packages,
    check_ports,
    check_python,
    check_ray_tokens,
    check_service,
    host_and_port,
)
from service.cli.console import JsonOption, UrlOption, print_json
from service.cli.exit_codes import ExitCode
from service.client import DEFAULT_URL, MicsClient
from service.settings import Settings

__all__ = ["doctor"]

_STYLES = {
    Finding.OK: ("✓", "green"),
    Finding.NOTE: ("·", "bright_black"),
    Finding.WARNING: ("!", "yellow"),
    Finding.FAILED: ("✗", "red"),
}

_SERVICE_WITHIN_S = 5.0


def doctor(
    address: Annotated[
        str,
        typer.Option(
            help="Ray cluster; `auto` finds this machine's.",
            envvar="MICS_RAY_ADDRESS",
            metavar="ADDRESS",
        ),
    ] = "auto",
    skip_ray: Annotated[
        bool, typer.Option("--skip-ray", help="Do not connect to the Ray cluster.")
    ] = False,
    as_json: JsonOption = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Check the set-up of this machine and say what to do; exit code 1 if something is wrong."""
    found: list[Check] = []
    console = Console(highlight=False, soft_wrap=True)
    for check in run_checks(address, url, skip_ray=skip_ray):
        found.append(check)
        if not as_json:
            _print(console, check)
    numbers = Counter(check.finding for check in found)
    is_well = not numbers[Finding.FAILED]
    if as_json:
        print_json({"ok": is_well, "checks": [asdict(check) for check in found]})
    else:
        failed, warnings = numbers[Finding.FAILED], numbers[Finding.WARNING]
        console.print(f"{len(found)} checks: {failed} failed, {warnings} warnings.")
    if not is_well:
        raise typer.Exit(ExitCode.FAILED)


def run_checks(address: str, url: str, *, skip_ray: bool) -> Iterator[Check]:
    """Yield what each check finds, as it finds it; a check that breaks counts as failed."""
    yield check_python()
    yield from _guarded("packages", check_packages)
    yield from _guarded("gpu", lambda: [check_gpus()])
    yield from _guarded("network", lambda: [check_addresses()])
    try:
        settings = Settings.from_environment()
    except MicsError as error:
        yield Check("settings", Finding.FAILED, error.message, error.remedy or "")
        settings = Settings()
    folders = {
        "database": settings.data_directory,
        "Ray's objects": Path(tempfile.gettempdir()),
    }
    yield from _guarded("disk", lambda: check_disks(folders))
    yield from _guarded("database", lambda: [check_database(settings.database)])
    with MicsClient(url, timeout_s=_SERVICE_WITHIN_S) as client:
        service, is_there = check_service(client)
    yield service
    if (place := host_and_port(url)) is not None:
        yield from _guarded("port", lambda: [check_ports(*place, is_service_there=is_there)])
    yield check_ray_tokens(dict(os.environ))
    if not skip_ray:
        yield from _guarded("ray", lambda: _check_ray(address))


def _guarded(name: str, check: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except Exception as error:  # whatever it is, the other checks are wanted too
        found = f"it could not be checked: {type(error).__name__}: {error}"
        yield Check(name, Finding.FAILED, found, "Report this with the output of --json.")


def _check_ray(address: str) -> Iterator[Check]:
    # Loaded here: every other command must start without Ray.
    from mics_core.cluster.connection import connect
    from mics_core.cluster.survey import installed_versions, survey_nodes

    try:
        connect(address)
    except MicsError as error:
        remedy = "Start one with `ray start --head`, or name its address with --address."
        yield Check("ray", Finding.FAILED, error.message, remedy)
        return
    nodes, here = survey_nodes(), installed_versions()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"{len(nodes)} nodes, {cpus:g} CPU slots, {gpus:g} GPUs"
    if cpus or gpus:
        yield Check("ray", Finding.OK, found)
    else:
        remedy = "Add a node with `ray start --address=HEAD:6379`, or let the autoscaler add some."
        yield Check("ray", Finding.WARNING, f"{found}: nothing can train", remedy)
    for node in nodes:
        name = f"node {node.host} {node.node_id[:8]}"
        if node.error:
            remedy = "Install this package there, in the Python that runs `ray start`."
            yield Check(name, Finding.FAILED, node.error, remedy)
            continue
        others = [
            f"{package} {node.versions.get(package, 'is missing')} (here {version})"
            for package, version in here.items()
            if node.versions.get(package) != version
        ]
        if others:
            remedy = "Install the versions of constraints.txt on every node."
            yield Check(name, Finding.FAILED, "; ".join(others), remedy)
        else:
            yield Check(name, Finding.OK, f"the versions of this machine, {node.cpus:g} CPU slots")


def _print(console: Console, check: Check) -> None:
    glyph, style = _STYLES[check.finding]
    shown = f"{glyph} {check.finding:<8}"
    console.print(Text.assemble((shown, style), (f"{check.name:<22} ", "bold"), check.found))
    if check.remedy:
        console.print(Text.assemble((" " * 10 + "remedy   ", "bright_black"), check.remedy))
