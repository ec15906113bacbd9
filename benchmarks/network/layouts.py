"""Which systems run on which nodes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Layout",
    "default_systems",
    "full_sharding",
    "is_planned",
    "parse_layout",
    "predicted_systems",
]


@dataclass(frozen=True, slots=True)
class Layout:
    """Nodes, and workers on each: `4x2`."""

    num_nodes: int
    workers_per_node: int

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.num_nodes}x{self.workers_per_node}"

    @property
    def world_size(self) -> int:
        """Workers of all nodes."""
        return self.num_nodes * self.workers_per_node


def parse_layout(text: str) -> Layout:
    """Read `4x2`.

    Raises:
        ValueError: It is not of that form.
    """
    nodes, _, workers = text.partition("x")
    return Layout(int(nodes), int(workers))


def default_systems(layout: Layout, link_mbit: float | None) -> list[str]:
    """Return the systems in the order of their turns; p = k stays inside a node.

    Full sharding of ours runs beside `fsdp2 full` on unshaped links alone: its goal is held there,
    and over a slow link its steps take as long as those of `fsdp2 full`.
    """
    systems = [
        "fsdp2 full",
        "fsdp2 2d",
        "fsdp2 2d deferred",
        "fsdp2 2d deferred kept",
        "ddp",
        f"mics p={layout.workers_per_node}",
        f"mics p={layout.world_size}",
        "mics auto",
        "deepspeed zero3",
        "deepspeed mics",
        f"deepspeed mics p={layout.world_size}",
    ]
    return [*systems, full_sharding(layout.world_size)] if link_mbit is None else systems


def predicted_systems(layout: Layout) -> list[str]:
    """Return systems of ours in many layouts, to hold predictions against."""
    in_node, whole = f"mics p={layout.workers_per_node}", f"mics p={layout.world_size}"
    return [
        full_sharding(layout.world_size),
        "mics auto",
        "mics p=1 checkpointing=true",
        in_node,
        f"{in_node} reshard=always",
        f"{in_node} reshard=always checkpointing=true",
        f"{in_node} micro_batch=2",
        whole,
        f"{whole} reshard=always",
        f"{whole} reshard=node",
        f"{whole} reshard=node accumulation=node micro_batch=2",
    ]


def full_sharding(world_size: int) -> str:
    """Return our system that shards, gathers and reduces as bare FSDP2 over all workers does."""
    return f"mics p={world_size} reshard=always accumulation=group hierarchical=never"


def is_planned(system: str) -> bool:
    """Whether a system is ours and nothing but its partition size is fixed."""
    kind, *words = system.split()
    return kind == "mics" and all(word == "auto" or word.startswith("p=") for word in words)
