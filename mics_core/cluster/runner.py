"""The runner of one partition group: calls `TorchTrainer.fit()` on the group's own first node.

One partition group is one Ray Train run, so that it may come, go or fail without the others. The
run's controller lives in the runner and its helpers beside it, not on the head.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.runtime_env import RuntimeEnv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mics_core.cluster.entry import train_worker
from mics_core.cluster.names import NAMESPACE, runner_name
from mics_core.cluster.reaching import has_supervisor
from mics_core.cluster.template import LOADED_FOR_FORKS, NODES_OF_FORKS
from mics_core.cluster.warm import python_of_forks
from mics_core.spec.job import JobSpec, TransformersModel

__all__ = ["PartitionGroupRunner", "RunSettings", "find_runner", "start_runner"]

logger = logging.getLogger(__name__)

_LOOK_S = 5.0

_RUNNER_ENVIRONMENT = {
    # The supervisor replaces lost groups; Ray Train's own preemption watcher restarts whole runs.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    # The controller asks its workers from a loop of its own, which nothing else waits for.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}

_WARM_STARTS = "MICS_WARM_STARTS"
_BRING_A_PYTHON = {"conda", "container", "image_uri", "pip", "py_executable", "uv"}


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings of one Ray Train run.

    Args:
        name: Name of the run.
        storage_path: Folder for Ray Train's own files.
        worker: `mics_core.cluster.worker.WorkerConfig` of its workers.
        resources_per_worker: What Ray sets aside for each.
        nodes_of_workers: Ray node id of each worker, by rank.
    """

    name: str
    storage_path: str
    worker: Any
    resources_per_worker: dict[str, float]
    nodes_of_workers: tuple[str, ...]


class PartitionGroupRunner:
    """Actor that owns one partition group's run; ending the actor ends the run.

    Args:
        job_id: The job.
    """

    def __init__(self, job_id: str):
        self._job_id = job_id
        self._outcome: asyncio.Task[None] | None = None
        threading.Thread(target=self._end_with_job, name="mics-end-with-job", daemon=True).start()

    async def prepare(self) -> int:
        """Load what a run needs while its nodes are still reserved; return the process id."""
        return await asyncio.to_thread(_prepare)

    async def run(self, settings: RunSettings) -> None:
        """Run the partition group until its workers' loops end.

        Called again, by the supervisor that follows the one that called first, it waits for the
        same run.

        Raises:
            ray.train.TrainingFailedError: A worker failed or died.
        """
        if self._outcome is None:
            self._outcome = asyncio.create_task(asyncio.to_thread(_run, settings))
        await asyncio.shield(self._outcome)

    def _end_with_job(self) -> None:
        while has_supervisor(self._job_id):
            time.sleep(_LOOK_S)
        logger.error("job %s has no supervisor any more: its group ends here", self._job_id)
        os._exit(1)


def _prepare() -> int:
    import mics_core.cluster.group_trainer  # noqa: F401

    return os.getpid()


def _run(settings: RunSettings) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from mics_core.cluster.backend import MicsTorchConfig
    from mics_core.cluster.group_trainer import GroupTrainer

    uses_gpus = bool(settings.resources_per_worker.get("GPU"))
    trainer = GroupTrainer(
        train_worker,
        train_loop_config={"config": settings.worker},
        torch_config=MicsTorchConfig(uses_gpus=uses_gpus),
        scaling_config=ScalingConfig(
            num_workers=len(settings.nodes_of_workers),
            use_gpu=uses_gpus,
            resources_per_worker=settings.resources_per_worker,
            label_selector=[{"ray.io/node-id": node} for node in settings.nodes_of_workers],
        ),
        run_config=RunConfig(
            name=settings.name,
            storage_path=settings.storage_path,
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


def start_runner(job_id: str, group_id: int, nodes: Sequence[str], spec: JobSpec) -> Any:
    """Start a group's runner on its first node and return its actor handle.

    Args:
        nodes: Ray node id of each worker, by rank.
        spec: Of the job.
    """
    return (
        ray.remote(PartitionGroupRunner)
        .options(
            name=runner_name(job_id, group_id),
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[0], soft=False),
            runtime_env=_environment(nodes, spec),
        )
        .remote(job_id)
    )


def _environment(nodes: Sequence[str], spec: JobSpec) -> RuntimeEnv:
    """Return what a runner starts in; the others of its group inherit it."""
    brings = ray.get_runtime_context().runtime_env.keys() & _BRING_A_PYTHON
    if brings or sys.platform != "linux" or os.environ.get(_WARM_STARTS) == "0":
        return RuntimeEnv(env_vars=_RUNNER_ENVIRONMENT)
    variables = {NODES_OF_FORKS: ",".join(sorted(set(nodes)))}
    if isinstance(spec.model, TransformersModel):
        family = spec.model.family
        variables[LOADED_FOR_FORKS] = f"transformers.models.{family}.modeling_{family}"
    variables |= _RUNNER_ENVIRONMENT
    return RuntimeEnv(env_vars=variables, py_executable=python_of_forks(sys.executable))


def find_runner(job_id: str, group_id: int) -> Any:
    """Return the handle of a group's runner; none if it is dead or never lived."""
    try:
        return ray.get_actor(runner_name(job_id, group_id), namespace=NAMESPACE)
    except ValueError:
        return None
