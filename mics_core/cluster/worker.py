"""What runs in each train worker: connects the engine to the supervisor and trains."""

from __future__ import annotations

import logging
import os
import traceback
from functools import partial

import ray
import ray.train
import ray.train.torch
import torch

from mics_core.cluster.lifeline import Lifeline
from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Ready, Started
from mics_core.cluster.reaching import SupervisorHandle
from mics_core.cluster.worker_config import WorkerConfig
from mics_core.comm.nodes import NODES_VARIABLE
from mics_core.comm.partition import form_partition_group
from mics_core.comm.store import StoreHost, host_store
from mics_core.engine.allocator import keep_freed_memory
from mics_core.engine.build import build_trainer
from mics_core.engine.causes import described, is_lost_peer
from mics_core.engine.loop import Ending, LoopOptions, train
from mics_core.engine.trainer import Trainer
from mics_core.errors import GroupFailedError
from mics_core.spec import parse_job_spec

__all__ = ["work"]

logger = logging.getLogger(__name__)

_LIFELINE_S = 30.0


def work(config: WorkerConfig) -> None:
    """Train as one worker of a partition group, in a process of its Ray Train run.

    Args:
        config: What the group is told.

    Raises:
        GroupFailedError: Names group, rank, step and cause; the group is lost, the run goes on.
    """
    # Ray says so before torch is loaded, but not before it is in a fork, see `warm`.
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        torch.set_num_threads(max(1, int(threads)))
    context = ray.train.get_context()
    rank = context.get_world_rank()
    supervisor = SupervisorHandle(config.job_id)
    link = SupervisorLink(supervisor, config.group_id, rank)
    link.start()
    link.send(Started(rank, ray.get_runtime_context().current_actor))
    lifeline = Lifeline(
        partial(supervisor.ask, "lifeline", timeout_s=_LIFELINE_S), config.group_id, rank
    )
    worker = _Worker(config, rank, link)
    try:
        ending = worker.run()
        link.ended(ending == Ending.FINISHED)
    except Exception as error:
        logger.error("%s", traceback.format_exc())
        cause = described(error)
        link.failed(worker.step, cause, own_error=not is_lost_peer(error))
        raise GroupFailedError(
            f"Group {config.group_id}, rank {rank} failed at step {worker.step}: {cause}"
        ) from error
    finally:
        link.close()
        lifeline.end()


class _Worker:
    """One worker's life, so that an error can say how far it was."""

    def __init__(self, config: WorkerConfig, rank: int, link: SupervisorLink):
        self._config = config
        self._rank = rank
        self._link = link
        self._trainer: Trainer | None = None
        self._store: StoreHost | None = None

    @property
    def step(self) -> int:
        """Steps committed so far."""
        return self._trainer.committed_steps if self._trainer is not None else 0

    def run(self) -> Ending:
        """Build, report ready and train."""
        spec = parse_job_spec(self._config.spec)
        device = ray.train.torch.get_device()
        if device.type == "cpu":
            keep_freed_memory()
        nodes = os.environ[NODES_VARIABLE].split(",")
        partition = form_partition_group([range(self._config.partition_size)], nodes, device)

        def build(initialise: bool) -> Trainer:
            self._trainer = build_trainer(
                spec, partition, device, strategy=self._config.strategy, initialise=initialise
            )
            self._report_ready()
            return self._trainer

        groups = spec.groups
        options = LoopOptions(collective_timeout_s=groups.first_step_s, silence_s=groups.silence_s)
        return train(build, self._link, begins_run=self._config.begins_run, options=options)

    def _report_ready(self) -> None:
        if self._rank == 0:
            # Any later generation may meet here; the store lives as long as this worker.
            self._store = host_store("0.0.0.0")
        context = ray.get_runtime_context()
        self._link.send(
            Ready(
                rank=self._rank,
                node_id=context.get_node_id(),
                host=ray.util.get_node_ip_address(),
                pid=os.getpid(),
                store_port=self._store.port if self._store is not None else None,
            )
        )
