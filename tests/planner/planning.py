"""Small models and clusters whose costs can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mics_core.planner.candidates import Choices, Pins
from mics_core.planner.prediction import Layout, Workload
from mics_core.planner.profile import ClusterProfile, Link
from mics_core.planner.shape import ModelShape, UnitShape
from mics_core.planner.strategy import Strategy

MODEL = ModelShape(
    num_blocks=4,
    block=UnitShape(parameters=1000, flops=1e6, activations=100),
    root=UnitShape(parameters=400, flops=5e5, activations=50),
    sequence_length=10,
    block_inputs=20,
)
"""4400 parameters; in fp32 a block is 4000 bytes and the root 1600."""

CLUSTER = ClusterProfile(
    name="test",
    num_nodes=4,
    workers_per_node=2,
    memory_bytes=1 << 20,
    peak_flops_per_s=1e9,
    intra_node=Link(1e6, 1e-4),
    inter_node=Link(1e5, 1e-3),
    efficiency=0.5,
    backend="gloo",
    memory_bytes_per_s=1e15,
)
"""4 nodes of 2, whose memory is too fast to matter; a forward pass over a block takes 2 ms a
sample, over the root 1 ms."""

FORWARD, HEAD = 2e-3, 1e-3
"""Seconds of one sample's forward pass there: a block, the root."""

SLOW_MEMORY = replace(CLUSTER, memory_bytes_per_s=1e6)
"""The same nodes with a memory that matters."""

HIERARCHICAL = Strategy("always", "group", *["hierarchical"] * 4)  # type: ignore[arg-type]
BY_NODE = Strategy("node", "node", *["hierarchical"] * 4)  # type: ignore[arg-type]


def workload(batch: int = 16, **changes: Any) -> Workload:
    return replace(Workload(batch, precision="fp32", bucket_bytes=1), **changes)


def layout(size: int, groups: int = 1, **changes: Any) -> Layout:
    return replace(Layout(size, groups, 1), **changes)


def choices(model: ModelShape = MODEL, batch: int = 16, **changes: Any) -> Choices:
    pins = {name: changes.pop(name) for name in list(changes) if hasattr(Pins(), name)}
    cluster = replace(CLUSTER, **changes)
    return Choices(model, workload(batch), cluster, Pins(**pins))
