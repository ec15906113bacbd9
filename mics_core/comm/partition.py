"""The partition group: the workers that hold one copy of the model states between them.

Its collectives inside the model (all-gather, reduce-scatter) are called by FSDP2
(`mics_core.comm.units`). Here are their process groups, and the small collectives on the host that
let the workers take every decision together. A partition group has no life beyond its weakest
member: any failure here ends the whole group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh

from mics_core.comm.abandoned import first_line
from mics_core.comm.nodes import NodeGrid, node_grid
from mics_core.comm.roll_call import RollCall
from mics_core.comm.stages import StageGroups
from mics_core.comm.staging import Staging, share_staging
from mics_core.errors import GroupFailedError, PartitionBrokenError

__all__ = ["PartitionGroup", "collective", "form_partition_group"]

_ANSWER_S = 2.0


@contextmanager
def collective(name: str) -> Iterator[None]:
    """Name the collective of a partition group that runs inside, if it breaks.

    Raises:
        PartitionBrokenError: Another worker of the group is gone, or answers no more.
    """
    try:
        yield
    except RuntimeError as error:
        raise PartitionBrokenError(f"the {name} broke: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class PartitionGroup:
    """One worker's view of its partition group.

    Args:
        mesh: One-dimensional device mesh over the p workers, given to `fully_shard`.
        control: Process group over the same workers that carries host tensors.
        background: Another one, for what goes on beside the steps: writing checkpoints.
        gathers: Process groups of the parameters' all-gathers.
        scatters: Process groups of the gradients' reduce-scatters, which run beside the gathers.
        nodes: The node of each rank.
        roll_call: Finds out who is missing when a collective breaks.
    """

    mesh: DeviceMesh
    control: dist.ProcessGroup
    background: dist.ProcessGroup
    gathers: StageGroups
    scatters: StageGroups
    nodes: tuple[str, ...]
    roll_call: RollCall

    @property
    def size(self) -> int:
        """Workers in the group (p)."""
        return self.control.size()

    @property
    def rank(self) -> int:
        """This worker's rank; also the index of its replication group."""
        return self.control.rank()

    @property
    def grid(self) -> NodeGrid:
        """The workers by node."""
        return self.gathers.grid

    @property
    def node(self) -> str:
        """This worker's node."""
        return self.nodes[self.rank]

    def limit_collectives(self, timeout_s: float) -> None:
        """Set the time limit of every collective that begins from now on."""
        limit = timedelta(seconds=timeout_s)
        for group in {self.control, *self.gathers.members, *self.scatters.members}:
            dist.distributed_c10d._set_pg_timeout(limit, group)
        for staging in (self.gathers.staging, self.scatters.staging):
            if staging is not None:
                staging.limit(timeout_s)

    def gather_doubles(self, values: Sequence[float]) -> list[list[float]]:
        """Gather each worker's vector; all workers of the group must call it.

        Returns:
            One row a worker, by rank.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self.size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        with collective("exchange of the step's summary"):
            dist.all_gather(rows, mine, group=self.control)
        return [row.tolist() for row in rows]

    def share_from_leader(self, value: Any) -> Any:
        """Return rank 0's `value` on every worker; all workers of the group must call it."""
        if self.size == 1:
            return value
        box = [value]
        with collective("exchange of a decision"):
            dist.broadcast_object_list(box, group=self.control, group_src=0)
        return box[0]

    def share(self, value: Any, over: dist.ProcessGroup | None = None) -> list[Any]:
        """Return every worker's `value`, by rank; all workers of the group must call it.

        Args:
            value: This worker's.
            over: Another process group over the same workers than that of the steps.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with collective("exchange of findings"):
            dist.all_gather_object(values, value, group=over or self.control)
        return values

    def form_background(self) -> dist.ProcessGroup:
        """Return another process group like `background`, where that one is stuck.

        All workers of the group must call it, and nobody else.
        """
        ranks = dist.get_process_group_ranks(self.control)
        with collective("forming of a process group"):
            formed: dist.ProcessGroup = dist.new_group(
                ranks, backend="gloo", use_local_synchronization=True
            )
        return formed

    @contextmanager
    def explained(self, group_id: int, step: Callable[[], int]) -> Iterator[None]:
        """Turn a broken collective inside into an error that names group, step and guilty ranks.

        Args:
            group_id: The partition group's id.
            step: Returns the step that the collectives belong to.

        Raises:
            GroupFailedError: A collective broke.
        """
        try:
            yield
        except PartitionBrokenError as broken:
            answers = self.roll_call.hold(_ANSWER_S)
            raise GroupFailedError(
                f"Partition group {group_id} broke at step {step()} on rank {self.rank}:"
                f" {broken.message} ({answers})",
                remedy="The missing workers' logs say why; the group is replaced.",
            ) from broken


def form_partition_group(
    groups: Sequence[Sequence[int]], nodes: Sequence[str], device: torch.device
) -> PartitionGroup:
    """Split the default world into partition groups and return this worker's.

    All workers of the default world must call it.

    Args:
        groups: The world ranks of each partition group.
        nodes: The node of each world rank; workers of one node stand together in each group.
        device: Decides the backend: NCCL on CUDA with gloo beside it for host tensors, else gloo.
    """
    on_gpu = device.type == "cuda"
    mine: PartitionGroup | None = None
    for ranks in groups:
        inside = tuple(nodes[rank] for rank in ranks)
        grid = node_grid(inside)
        main = dist.new_group(list(ranks), backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        background = dist.new_group(list(ranks), backend="gloo")
        backend = "nccl" if on_gpu else "gloo"
        gathers = _stages(ranks, grid, main, backend)
        scatters = _stages(ranks, grid, dist.new_group(list(ranks), backend=backend), backend)
        if dist.get_rank() in ranks:
            mesh = DeviceMesh.from_group(main, device.type, mesh_dim_names=("partition",))
            # The only store that all workers know; torch has no public way to it.
            store = dist.distributed_c10d._get_default_store()
            roll_call = RollCall(store, str(ranks[0]), main.rank(), len(ranks))
            mine = PartitionGroup(mesh, main, background, gathers, scatters, inside, roll_call)
    assert mine is not None, "every rank belongs to a partition group"
    return mine


def _stages(
    ranks: Sequence[int], grid: NodeGrid, whole: dist.ProcessGroup, backend: str
) -> StageGroups:
    """Form the process groups of both stages; all workers of the default world must call it."""
    is_mine = dist.get_rank() in ranks
    if not grid.has_stages:
        return StageGroups(whole, grid, staging=_staging(whole, grid, backend) if is_mine else None)
    rows = [grid.row(node) for node in range(grid.num_nodes)]
    columns = [grid.column(local_rank) for local_rank in range(grid.workers_per_node)]
    intra, inter = (
        _mine_of([[ranks[place] for place in places] for places in stage], backend)
        for stage in (rows, columns)
    )
    return StageGroups(whole, grid, intra, inter, _staging(intra, grid, backend))


def _staging(intra: dist.ProcessGroup | None, grid: NodeGrid, backend: str) -> Staging | None:
    """Share memory with the other workers of this node; all of them must call it."""
    if intra is None or grid.workers_per_node == 1 or backend != "gloo":
        return None
    return share_staging(intra, default_pg_timeout.total_seconds())


def _mine_of(groups: Sequence[Sequence[int]], backend: str) -> dist.ProcessGroup | None:
    mine = None
    for members in groups:
        group = dist.new_group(list(members), backend=backend)
        if dist.get_rank() in members:
            mine = group
    return mine
