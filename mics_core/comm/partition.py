"""The partition group: the workers that hold one copy of the model states between them.

Its collectives inside the model (all-gather, reduce-scatter) are FSDP2's. Here are the small ones
on the host that let its workers take every decision together. A partition group has no life beyond
its weakest member: any failure here ends the whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True, slots=True)
class PartitionGroup:
    """One worker's view of its partition group.

    Args:
        mesh: One-dimensional device mesh over the p workers, given to `fully_shard`.
        control: Process group over the same workers that carries host tensors.
        background: Another one, for what goes on beside the steps: writing checkpoints.
    """

    mesh: DeviceMesh
    control: dist.ProcessGroup
    background: dist.ProcessGroup

    @property
    def size(self) -> int:
        """Workers in the group (p)."""
        return self.control.size()

    @property
    def rank(self) -> int:
        """This worker's rank; also the index of its replication group."""
        return self.control.rank()

    def sum_doubles(self, values: Sequence[float]) -> list[float]:
        """Add vectors over the group, in the same order on every worker.

        All workers of the group must call it. The sum is taken over the gathered vectors, so that
        it is bit for bit the same on every worker and in every partition group.
        """
        gathered = self.gather_doubles(values)
        return [sum(column) for column in zip(*gathered, strict=True)]

    def gather_doubles(self, values: Sequence[float]) -> list[list[float]]:
        """Gather each worker's vector; all workers of the group must call it.

        Returns:
            One row a worker, by rank.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.control)
        return [row.tolist() for row in rows]

    def share_from_leader(self, value: Any) -> Any:
        """Return rank 0's `value` on every worker; all workers of the group must call it."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.control, group_src=0)
        return box[0]
