"""A virtual environment that holds `ray[default]` and nothing else: no torch, none of this project.

Its packages are links to those that are installed here, for installing them anew takes most of a
minute. What is linked is what `ray[default]` requires, by the packages' own metadata.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class OtherEnvironment:
    """A virtual environment in `folder`, and programs that run in it.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = folder / "lib" / version / "site-packages"
        for source in _files_of("ray", {"default"}):
            link = packages / source.name
            if not link.exists():
                link.symlink_to(source)

    @property
    def python(self) -> str:
        return str(self._folder / "bin" / "python")

    def run(self, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run its Python with nothing of this process's environment, and check that it succeeds."""
        done = subprocess.run(
            [self.python, *arguments],
            env={"PATH": os.defpath, "HOME": str(self._folder), "RAY_USAGE_STATS_ENABLED": "0"},
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


def _files_of(name: str, extras: set[str]) -> Iterator[Path]:
    """Yield what a distribution and all that it requires have in the folder of packages."""
    known: set[tuple[str, str]] = set()
    waiting = [(name, extra) for extra in ("", *extras)]
    while waiting:
        found, extra = waiting.pop()
        if (found, extra) in known:
            continue
        known.add((found, extra))
        distribution = metadata.distribution(found)
        for text in distribution.requires or []:
            required = Requirement(text)
            if required.marker is None or required.marker.evaluate({"extra": extra}):
                inner = canonicalize_name(required.name)
                waiting += [(inner, each) for each in ("", *required.extras)]
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        yield from (Path(str(distribution.locate_file(top))) for top in sorted(tops))
