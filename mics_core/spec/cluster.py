"""The cluster file: what the planner knows of a cluster, written by hand or by `mics probe`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from mics_core.errors import Problem, SpecificationError
from mics_core.spec.job import SpecModel
from mics_core.spec.peaks import PeakOrPeaks
from mics_core.spec.problems import problems_of, shown
from mics_core.spec.yaml_file import read_yaml

__all__ = [
    "ClusterSpec",
    "LinkSpec",
    "dump_cluster_spec",
    "load_cluster_spec",
    "parse_cluster_spec",
    "write_cluster_spec",
]


class LinkSpec(SpecModel):
    """A kind of link, alpha-beta: a message of n bytes takes latency + n / bandwidth."""

    bandwidth_gbit_per_s: float = Field(gt=0.0)
    """Bandwidth in Gbit/s, one direction, while all workers of the node use it at once."""
    latency_us: float = Field(ge=0.0)
    """Time of a message without content, in microseconds; one round of a ring costs it once."""


class ClusterSpec(SpecModel):
    """A cluster of equal nodes."""

    name: str = Field(min_length=1, max_length=100)
    """A name for people."""
    nodes: int = Field(gt=0)
    """Nodes with workers."""
    workers_per_node: int = Field(gt=0)
    """Workers of each node (k): its GPUs, or as many CPU workers as it holds."""
    memory_gib: float = Field(gt=0.0)
    """Memory of one worker in GiB."""
    peak_tflops: PeakOrPeaks
    """Largest rate of one worker's matrix products in TFLOP/s, all workers of the node busy: one
    number, which counts for every precision, or one for each that jobs train in, such as `{fp32:
    19.5, bf16: 312}`. `mics probe` writes all three of GPUs, and on CPUs the one of fp32."""
    efficiency: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of `peak_tflops` that a model's layers reach when nothing waits for communication;
    `mics probe` measures it with one block like GPT-2's."""
    memory_gb_per_s: float | None = Field(default=None, gt=0.0)
    """Bytes that one worker reads and writes in its memory in a second, in GB, all workers of the
    node busy. Left out, it is taken from `peak_tflops`, at 200 operations a byte on GPUs and 10 on
    CPUs; in the fp32 and fp64 of a mapping at 15 on GPUs, in its fp64 at 5 on CPUs."""
    host_gb_per_s: float = Field(default=10.0, gt=0.0)
    """Bytes that go between a worker's GPU and the host's memory in a second, one way, in GB, all
    GPUs of the node busy: what `engine.offload_optimizer` costs. The update on the host is taken to
    move as much a worker. `mics probe` does not measure it."""
    intra_node: LinkSpec
    """Between workers of one node; the bandwidth is that of each worker."""
    inter_node: LinkSpec
    """Between nodes; the bandwidth is that of a whole node, shared by its workers."""


def parse_cluster_spec(value: Any) -> ClusterSpec:
    """Check `value` against the form of a cluster file.

    Args:
        value: A mapping as YAML or JSON gives it.

    Raises:
        SpecificationError: Names every field that breaks a rule, its value, the rule, the remedy.
    """
    if not isinstance(value, Mapping):
        raise SpecificationError(
            [
                Problem(
                    field="(cluster)",
                    value=shown(value),
                    rule="a cluster file is a mapping of fields.",
                    remedy="Have `mics probe` write it, or start with `name:` and `nodes:`.",
                )
            ]
        )
    try:
        return ClusterSpec.model_validate(dict(value))
    except ValidationError as error:
        raise SpecificationError(problems_of(error, ClusterSpec)) from None


def load_cluster_spec(path: str | Path) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        SpecificationError: The file cannot be read, is no YAML, or breaks a rule.
    """
    return parse_cluster_spec(read_yaml(Path(path)))


def dump_cluster_spec(spec: ClusterSpec, comments: tuple[str, ...] = ()) -> str:
    """Return the text of a cluster file.

    Args:
        spec: The cluster.
        comments: Lines for its top, such as where the figures come from.
    """
    lines = [f"# {line}" for comment in comments for line in comment.splitlines()]
    body = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return "\n".join([*lines, body])


def write_cluster_spec(spec: ClusterSpec, path: str | Path, comments: tuple[str, ...] = ()) -> None:
    """Write a cluster file that `load_cluster_spec` reads; a file that is there is replaced.

    Raises:
        SpecificationError: The file cannot be written.
    """
    try:
        Path(path).write_text(dump_cluster_spec(spec, comments), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        rule = f"it cannot be written ({reason})."
        remedy = "Name a file in an existing folder."
        raise SpecificationError([Problem("(file)", str(path), rule, remedy)]) from None
