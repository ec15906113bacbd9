"""Looks at the living nodes of a Ray cluster: what each offers, and what is installed there.

Every node needs this package, and the same versions as the others: workers exchange pickled objects
and tensors.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["SurveyedNode", "installed_versions", "survey_nodes"]

_PACKAGES = ("mics-elastic", "ray", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class SurveyedNode:
    """One living node.

    Args:
        node_id: Ray's id of it.
        host: Its address.
        cpus: Its CPU slots.
        gpus: Its GPUs.
        versions: Versions of Python and of the packages that matter, by name; those that are not
            installed are left out.
        error: Why it could not be asked; empty if it could.
    """

    node_id: str
    host: str
    cpus: float
    gpus: float
    versions: dict[str, str]
    error: str = ""


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, in this environment."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def survey_nodes(timeout_s: float = 60.0) -> list[SurveyedNode]:
    """Ask every living node of the connected cluster for its versions, all at once.

    Args:
        timeout_s: Longest wait for the slowest.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    ask = ray.remote(num_cpus=0)(installed_versions)
    asked = [
        ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
    ]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    return [
        _surveyed(node, answer if answer in ready else None, timeout_s)
        for node, answer in zip(nodes, asked, strict=True)
    ]


def _surveyed(node: dict[str, Any], answer: Any, timeout_s: float) -> SurveyedNode:
    versions: dict[str, str] = {}
    error = ""
    if answer is None:
        error = f"it did not answer in {timeout_s:g} s"
    else:
        try:
            versions = ray.get(answer)
        except RayError as failure:
            lines = [line for line in str(failure).splitlines() if line.strip()]
            error = lines[-1].strip() if lines else type(failure).__name__
    resources = node["Resources"]
    return SurveyedNode(
        node_id=node["NodeID"],
        host=node["NodeManagerAddress"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        versions=versions,
        error=error,
    )
