"""Virtual environments for DeepSpeed, one a release, without compiled operators."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.environments import PeerEnvironment

__all__ = ["MICS_VERSION", "NEWEST_VERSION", "DeepSpeedEnvironment", "prepare_deepspeed"]

NEWEST_VERSION = "0.19.8"
MICS_VERSION = "0.19.2"
"""The last release whose MiCS trains: later ones deadlock with several partition groups, and
0.19.7 removed it."""


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
    environment = PeerEnvironment(f"deepspeed-{version}")
    variables = {
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_OPS": "0",
        # Versions must not share compiled operators, nor their locks.
        "TORCH_EXTENSIONS_DIR": str(environment.folder / "torch-extensions"),
        # ninja, which compiles an operator at its first use, is a program of the environment.
        "PATH": f"{environment.bin}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    environment.install(
        ["setuptools==80.*", "ninja"],
        ["--no-build-isolation", f"deepspeed=={version}"],
        variables=variables,
    )
    return DeepSpeedEnvironment(environment.python, variables)
