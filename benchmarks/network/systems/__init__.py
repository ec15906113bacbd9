"""The systems under test, by name. Each is imported where it is used: peers are no dependencies."""

from __future__ import annotations

import importlib

from benchmarks.harness.messages import System, SystemInBlocks
from benchmarks.harness.site import Site
from mics_core.spec import JobSpec

__all__ = ["build_system", "family_of"]

_MODULES = {
    "ddp": "ddp",
    "deepspeed": "deepspeed",
    "elastic": "elastic",
    "fixed": "fixed",
    "fsdp2": "fsdp2",
    "joining": "joining",
    "mics": "mics",
}


def family_of(name: str) -> str:
    """Return the first word of a system's name, which says who trains."""
    return name.split()[0]


def build_system(name: str, spec: JobSpec, site: Site) -> System | SystemInBlocks:
    """Build one worker's part of a system; all workers of the world must call it.

    Args:
        name: A family and its options, such as `fsdp2 2d deferred` or `mics p=2`.
        spec: What to train. Every system starts from the same weights and sees the same batches.
        site: The worker's place.

    Raises:
        ValueError: There is no such system.
    """
    family = family_of(name)
    if family not in _MODULES:
        raise ValueError(f"no system is called {name!r}; there are {sorted(_MODULES)}.")
    module = importlib.import_module(f"benchmarks.network.systems.{_MODULES[family]}")
    system: System | SystemInBlocks = module.build(name, spec, site)
    return system
