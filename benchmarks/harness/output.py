"""Result files: the rows as JSON, and beside them on what they were measured."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

__all__ = ["RESULTS", "build_console", "read_facts", "update_facts", "write_results"]

RESULTS = Path(__file__).resolve().parents[1] / "results"
_PACKAGES = ("mics-elastic", "torch", "transformers", "numpy")


def build_console() -> Console:
    """Return where to print; tables keep their width in a file."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def write_results(path: Path, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write `rows` to `path` and the circumstances to `<stem>.meta.json`.

    Args:
        path: A `.json` file; its folder is made.
        rows: The results.
        facts: What else belongs to the circumstances.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, rows)
    _write(_meta_of(path), {**_circumstances(), **facts})


def update_facts(path: Path, **facts: Any) -> None:
    """Change some facts beside the results in `path`, and leave the circumstances as they are."""
    meta = _meta_of(path)
    _write(meta, {**read_facts(path), **facts})


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts beside the results in `path`."""
    facts: dict[str, Any] = json.loads(_meta_of(path).read_text(encoding="utf-8"))
    return facts


def _meta_of(path: Path) -> Path:
    return path.with_suffix(".meta.json")


def _circumstances() -> dict[str, Any]:
    return {
        "kind": "measured",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "commit": _commit(),
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "versions": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            **{package: _version(package) for package in _PACKAGES},
        },
    }


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def _commit() -> str:
    """Return the commit, with `+changes` where the tree differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":(top,exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(RESULTS.parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
