"""The virtual environment of torchft: made by the benchmark, and never a dependency."""

from __future__ import annotations

from benchmarks.harness.environments import PeerEnvironment

__all__ = ["VERSION", "prepare_torchft"]

VERSION = "0.2.0"


def prepare_torchft() -> PeerEnvironment:
    """Return the environment of torchft, installing it first where it is missing.

    Raises:
        CannotPrepareError: It could not be installed.
    """
    return PeerEnvironment(f"torchft-{VERSION}").install([f"torchft=={VERSION}"])
