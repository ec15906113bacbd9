"""Virtual environments for peers, made by the benchmarks and never a dependency.

Each sees the project's own packages, torch included, and adds what a peer needs on top of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CannotPrepareError", "PeerEnvironment"]

_CACHE = Path(__file__).resolve().parent.parent / ".cache"
_INSTALL_TIMEOUT_S = 600.0


class CannotPrepareError(Exception):
    """A peer could not be installed; the message says why."""


class PeerEnvironment:
    """The environment of one release of a peer; nothing is made before `install`.

    Args:
        name: Names the folder under `benchmarks/.cache`, such as `deepspeed-0.19.8`.
    """

    def __init__(self, name: str):
        self.folder = _CACHE / name
        self.bin = self.folder / "bin"
        self.python = self.bin / "python"

    def install(
        self, *steps: Sequence[str], variables: dict[str, str] | None = None
    ) -> PeerEnvironment:
        """Make the environment where it is missing; return it.

        Args:
            steps: The arguments of one `pip install` after the other.
            variables: Environment variables of the installation beside the usual ones.

        Raises:
            CannotPrepareError: It could not be installed.
        """
        done = self.folder / ".installed"
        if done.exists():
            return self
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        self._show_project_packages()
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for arguments in steps:
            _run([*pip, *arguments], {**os.environ, **(variables or {})})
        done.touch()
        return self

    def _show_project_packages(self) -> None:
        """Let the environment import the running one's packages, after its own."""
        [site_packages] = self.folder.glob("lib/python*/site-packages")
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
