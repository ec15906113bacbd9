"""The Ray Train backend of a partition group: `TorchConfig` with the settings that MiCS needs.

One run's world is one partition group, so torch's default process group is the partition group.
On CUDA it carries host tensors through gloo beside NCCL, for the votes of a step.

Without CUDA the workers meet at a store of this project, see [Note: why not torch's store] in
`mics_core.comm.store`: every process group of a world asks its store again. NCCL's own threads ask
it too, which is no place for Python, so with CUDA it is torch's.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from mics_core.comm.nodes import NODES_VARIABLE
from mics_core.comm.store import MeetingStore, host_store
from mics_core.elastic.plan import StoreAddress

__all__ = ["MicsBackend", "MicsTorchConfig"]

logger = logging.getLogger(__name__)


@dataclass
class MicsTorchConfig(TorchConfig):
    """Process group settings of one partition group.

    Args:
        uses_gpus: Whether the workers hold a GPU each.
    """

    timeout_s: int = 300
    uses_gpus: bool = False

    def __post_init__(self) -> None:
        self.backend = "cpu:gloo,cuda:nccl" if self.uses_gpus else "gloo"

    @property
    def backend_cls(self) -> type[MicsBackend]:
        """The backend that Ray Train calls."""
        return MicsBackend


class MicsBackend(_TorchBackend):
    """Tells every worker where its peers are before the process group forms.

    Ray Train counts local ranks by address, and simulated nodes share one; node ids are the truth.
    The object is shared by all runs of a process, so it keeps no state.
    """

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set the workers' environment and form the process group."""
        nodes = worker_group.execute(_node_id)
        worker_group.execute(_set_variable, NODES_VARIABLE, ",".join(nodes))
        if "nccl" in (backend_config.backend or ""):
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_set_torch_distributed_env_vars)
        store = worker_group.execute_single(0, _host_world)
        size = len(worker_group)
        joins = [
            worker_group.execute_single_async(
                rank, _join_world, store, rank, size, backend_config.timeout_s
            )
            for rank in range(size)
        ]
        ray.get(joins)


_kept: list[Any] = []
"""A worker's store: torch keeps only its own half of it."""


def _host_world() -> StoreAddress:
    host = ray.util.get_node_ip_address()
    store = host_store("0.0.0.0")
    _kept.append(store)
    return StoreAddress(host, store.port)


def _join_world(address: StoreAddress, rank: int, size: int, timeout_s: int) -> None:
    logger.info("rank %d of %d meets the others at %s:%d", rank, size, address.host, address.port)
    timeout = timedelta(seconds=timeout_s)
    store = MeetingStore(address.host, address.port, timeout)
    _kept.append(store)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _set_variable(name: str, value: str) -> None:
    os.environ[name] = value
