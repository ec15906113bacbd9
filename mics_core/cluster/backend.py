"""The Ray Train backend of a partition group: `TorchConfig` with the settings that MiCS needs.

One run's world is one partition group, so torch's default process group is the partition group.
On CUDA it carries host tensors through gloo beside NCCL, for the votes of a step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from mics_core.comm.nodes import NODES_VARIABLE
from mics_core.comm.store import LIBUV_VARIABLE

__all__ = ["MicsBackend", "MicsTorchConfig"]


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
        worker_group.execute(_set_variable, LIBUV_VARIABLE, "0")
        super().on_start(worker_group, backend_config)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _set_variable(name: str, value: str) -> None:
    os.environ[name] = value
