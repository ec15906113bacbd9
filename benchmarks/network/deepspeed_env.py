"""Virtual environments for DeepSpeed, one a release, made by the benchmark and never a dependency.

Each sees the project's own packages, torch included, and adds DeepSpeed without compiled operators.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MICS_VERSION", "NEWEST_VERSION", "DeepSpeedEnvironment", "prepare_deepspeed"]

NEWEST_VERSION = "0.19.8"
MICS_VERSION = "0.19.2"
"""The last release whose MiCS trains: later ones deadlock with several partition groups, and
0.19.7 removed it."""

_CACHE = Path(__file__).resolve().parent.parent / ".cache"
_INSTALL_TIMEOUT_S = 600.0


class CannotPrepareError(Exception):
    """DeepSpeed could not be installed; the message says why."""


@dataclass(frozen=True, slots=True)
class DeepSpeedEnvironment:
    """An installed release.

    Args:
        python: The environment's interpreter.
        variables: Environment variables that its processes need.
    """

    python: Path
    variables: dict[str, str]


def prepare_deepspeed(version: str) -> DeepSpeedEnvironment:
    """Return the environment of a DeepSpeed release, installing it first where it is missing.

    Raises:
        CannotPrepareError: It could not be installed.
    """
    folder = _CACHE / f"deepspeed-{version}"
    python, done = folder / "bin" / "python", folder / ".installed"
    variables = {
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_OPS": "0",
        # Versions must not share compiled operators, nor their locks.
        "TORCH_EXTENSIONS_DIR": str(folder / "torch-extensions"),
        # ninja, which compiles an operator at its first use, is a program of the environment.
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if not done.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _show_project_packages(folder)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "setuptools==80.*", "ninja"])
        install = [*pip, "--no-build-isolation", f"deepspeed=={version}"]
        _run(install, {**os.environ, **variables})
        done.touch()
    return DeepSpeedEnvironment(python, variables)


def _show_project_packages(folder: Path) -> None:
    """Let the environment import the running one's packages, after its own."""
    [site_packages] = folder.glob("lib/python*/site-packages")
    project = sysconfig.get_paths()["purelib"]
    (site_packages / "project.pth").write_text(
        f"import site; site.addsitedir({project!r})\n", encoding="utf-8"
    )


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(
            command,
            check=True,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise CannotPrepareError(f"installing took longer than {error.timeout:.0f} s") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stdout or "").splitlines() if line.strip()]
        raise CannotPrepareError(lines[-1] if lines else f"exit {error.returncode}") from None
