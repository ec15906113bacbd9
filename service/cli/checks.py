"""The checks of `mics doctor`: each looks at one thing, and says what to do if it is not right."""

from __future__ import annotations

import enum
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from mics_core import __version__
from mics_core.errors import MicsError
from service.client import MicsClient, ServiceUnreachableError

__all__ = [
    "Check",
    "Finding",
    "check_addresses",
    "check_database",
    "check_disks",
    "check_gpus",
    "check_packages",
    "check_ports",
    "check_python",
    "check_ray_tokens",
    "check_service",
    "host_and_port",
    "own_address",
]

_DISTRIBUTION = "mics-elastic"
_LOW_GIB, _TOO_LOW_GIB = 10.0, 1.0
_KNOCK_S = 2.0


class Finding(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; nothing is wrong."""
    WARNING = "warning"
    """Works now, and may not later or elsewhere."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Args:
        name: What was looked at.
        finding: How it ended.
        found: What there is, in one sentence.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    finding: Finding
    found: str
    remedy: str = ""


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python is new enough."""
    shown = ".".join(map(str, version))
    if version >= (3, 11):
        return Check("python", Finding.OK, f"{shown} on {platform.system()}, {sys.executable}")
    remedy = "Install Python 3.11 or newer, and this package in an environment of it."
    return Check("python", Finding.FAILED, f"{shown} is too old", remedy)


def check_packages(distribution: str = _DISTRIBUTION) -> Iterator[Check]:
    """What the package requires is installed, in versions that it takes."""
    try:
        required = [Requirement(text) for text in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        remedy = "Install it: pip install --constraint constraints.txt ."
        yield Check("packages", Finding.FAILED, f"{distribution} is not installed", remedy)
        return
    wrong, known = [], {}
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        known[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        remedy = "Install the tested versions: pip install --constraint constraints.txt ."
        yield Check("packages", Finding.FAILED, "; ".join(wrong), remedy)
        return
    shown = ", ".join(f"{name} {known[name]}" for name in ("ray", "torch", "transformers"))
    found = f"{distribution} {__version__}, {shown}; all {len(known)} required are there"
    yield Check("packages", Finding.OK, found)


def check_gpus(program: str = "nvidia-smi") -> Check:
    """GPUs of this machine, and whether torch is built for them."""
    path = shutil.which(program)
    if path is None:
        found = f"none ({program} is not there): this machine trains on its CPU"
        return Check("gpu", Finding.NOTE, found)
    try:
        asked = subprocess.run([path, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gpu", Finding.FAILED, f"{program} does not work: {error}", _DRIVER_REMEDY)
    gpus = [line.split(" (UUID")[0] for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode or not gpus:
        said = (asked.stdout + asked.stderr).strip().splitlines()
        found = f"{program} finds none: {said[-1] if said else 'it says nothing'}"
        return Check("gpu", Finding.FAILED, found, _DRIVER_REMEDY)
    if "+cpu" in metadata.version("torch"):
        found = f"{len(gpus)} GPUs, but torch is built for CPUs"
        return Check("gpu", Finding.FAILED, found, "Install torch without the index of CPU builds.")
    return Check("gpu", Finding.OK, "; ".join(gpus))


_DRIVER_REMEDY = "Install the NVIDIA driver, or set resources.gpus to 0 and train on the CPU."


def check_disks(folders: dict[str, Path]) -> Iterator[Check]:
    """Folders that grow have room, and can be written.

    Args:
        folders: What each is for, and where it is.
    """
    for purpose, folder in folders.items():
        name, there = f"disk: {purpose}", folder.expanduser()
        while not there.exists() and there != there.parent:
            there = there.parent
        if not os.access(there, os.W_OK):
            remedy = "Choose another folder, or have its owner let you write there."
            yield Check(name, Finding.FAILED, f"{there} cannot be written", remedy)
            continue
        free_gib = shutil.disk_usage(there).free / (1 << 30)
        found = f"{free_gib:.1f} GiB free in {there}"
        if free_gib < _TOO_LOW_GIB:
            yield Check(name, Finding.FAILED, found, "Free some space, or choose another folder.")
        elif free_gib < _LOW_GIB:
            yield Check(name, Finding.WARNING, found, "Free some space before a long run.")
        else:
            yield Check(name, Finding.OK, found)


def check_ports(host: str, port: int, is_service_there: bool) -> Check:
    """The service's port is free, or the service has it."""
    name = f"port {port}"
    if is_service_there:
        return Check(name, Finding.OK, f"the service listens on {host}:{port}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = f"End the other program (`ss -ltnp 'sport = :{port}'`), or choose --port."
            return Check(name, Finding.FAILED, f"another program has it ({error})", remedy)
    return Check(name, Finding.OK, "free for `mics serve`")


def check_addresses() -> Check:
    """A connection to this machine's own address arrives, as those of other nodes must."""
    address = own_address()
    if address.startswith("127."):
        found = "this machine has no address but loopback: it can be a cluster by itself alone"
        return Check("network", Finding.NOTE, found)
    try:
        with socket.create_server((address, 0)) as server:
            server.settimeout(_KNOCK_S)
            port = server.getsockname()[1]
            with socket.create_connection((address, port), timeout=_KNOCK_S):
                server.accept()[0].close()
    except OSError as error:
        found = f"a connection to {address} does not arrive ({error})"
        return Check("network", Finding.FAILED, found, _FIREWALL_REMEDY)
    return Check("network", Finding.OK, f"connections to {address} arrive; {_FIREWALL_HINT}")


_FIREWALL_HINT = (
    "between nodes all TCP ports must be open (Ray 6379, 8265, 10002 to 19999; workers any), and"
    " none to the outside"
)
_FIREWALL_REMEDY = (
    "Let the cluster's own network through: all TCP ports between its nodes, for example"
    " `ufw allow from 10.0.0.0/16`, or a security group that allows itself."
)


def own_address() -> str:
    """Return the address by which other machines would know this one; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: an address that nobody has
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def check_ray_tokens(environment: dict[str, str]) -> Check:
    """Ray's own token authentication is on."""
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    has_token = bool(environment.get("RAY_AUTH_TOKEN")) or path.is_file()
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode == "token" and has_token:
        return Check("ray token", Finding.OK, "RAY_AUTH_MODE is token, and there is one")
    if mode == "token":
        remedy = "Copy the cluster's there, or make one with `ray get-auth-token --generate`."
        found = f"RAY_AUTH_MODE is token, but {path} is not there"
        return Check("ray token", Finding.FAILED, found, remedy)
    remedy = (
        "Run `ray get-auth-token --generate`, and set RAY_AUTH_MODE=token on every node before"
        " Ray starts: whoever reaches its ports runs code there."
    )
    shown = f"is {mode}" if mode else "is not set"
    return Check("ray token", Finding.WARNING, f"RAY_AUTH_MODE {shown}", remedy)


def check_service(client: MicsClient) -> tuple[Check, bool]:
    """The service answers, is of this version, and reaches Ray; also whether one answers at all."""
    try:
        health = client.health()
    except ServiceUnreachableError as error:
        remedy = "Start it with `mics serve`, or name its address with --url or MICS_URL."
        return Check("service", Finding.WARNING, error.message, remedy), False
    except MicsError as error:
        return Check("service", Finding.FAILED, error.message, error.remedy or ""), False
    found = f"version {health.version} at {client.url}"
    if health.version != __version__:
        remedy = "Install the same version on both sides."
        check = Check("service", Finding.WARNING, f"{found}; this is {__version__}", remedy)
    elif health.status != "ok":
        remedy = "Start the cluster, or name it with MICS_RAY_ADDRESS; the service reconnects."
        check = Check("service", Finding.FAILED, f"{found} is degraded: {health.ray}", remedy)
    else:
        check = Check("service", Finding.OK, found)
    return check, True


def check_database(url: str) -> Check:
    """The database can be opened and read; nothing is changed."""
    # Loaded here: other commands need no database.
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            file = Path(parsed.database or "")
            if not file.exists():
                return Check("database", Finding.NOTE, f"{file} is made by the first `mics serve`")
            url = f"sqlite:///file:{file}?mode=ro&uri=true"
        engine = create_engine(url)
        question = "PRAGMA quick_check" if parsed.get_backend_name() == "sqlite" else "SELECT 1"
        try:
            with engine.connect() as connection:
                answer = connection.execute(text(question)).scalar()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        remedy = "Correct MICS_DATABASE_URL, start the server, or install its driver."
        return Check("database", Finding.FAILED, f"it cannot be opened: {reason}", remedy)
    shown = parsed.render_as_string(hide_password=True)
    if answer in ("ok", 1):
        return Check("database", Finding.OK, shown)
    remedy = "Stop the service, and put the last copy of the file in its place."
    return Check("database", Finding.FAILED, f"{shown} is damaged: {answer}", remedy)


def host_and_port(url: str) -> tuple[str, int] | None:
    """Return where the service at `url` would listen, if that is this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host not in ("localhost", "127.0.0.1", "::1", own_address()):
        return None
    return ("127.0.0.1" if host == "localhost" else host), parts.port or 80
