"""Which systems run on which nodes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Layout", "default_systems", "parse_layout"]


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


def default_systems(layout: Layout) -> list[str]:
    """Return the systems in the order of their turns; p = k stays inside a node."""
    return [
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
    ]
