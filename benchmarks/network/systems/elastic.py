"""Our engine as a member of an elastic run: `elastic p=2`.

The workers belong to a job whose supervisor is an actor on a Ray cluster. They hold the same links
and lifelines to it as workers of a Ray Train run, and the loop enters the generation that it
announces, reports every step and listens for losses. What stays away is only what Ray Train does to
start them.
"""

from __future__ import annotations

import os
from functools import partial

import ray
import torch

from benchmarks.harness.site import Site
from benchmarks.network.systems.blocks import Gate, GatedMembership, InBlocks, form_group
from mics_core.cluster.lifeline import Lifeline
from mics_core.cluster.link import SupervisorLink
from mics_core.cluster.messages import Ready
from mics_core.cluster.names import NAMESPACE
from mics_core.cluster.reaching import SupervisorHandle
from mics_core.comm.store import host_store
from mics_core.engine.build import build_trainer
from mics_core.engine.trainer import Trainer
from mics_core.spec import JobSpec

__all__ = ["ADDRESS_VARIABLE", "JOB_VARIABLE", "build"]

ADDRESS_VARIABLE = "BENCH_RAY_ADDRESS"
JOB_VARIABLE = "BENCH_JOB_ID"
_TIMEOUT_S = 120.0


def build(name: str, spec: JobSpec, site: Site) -> InBlocks:
    """Build one worker's part; all workers of the world must call it."""
    partition = form_group(name, site)
    ray.init(os.environ[ADDRESS_VARIABLE], namespace=NAMESPACE, log_to_driver=False)
    job_id = os.environ[JOB_VARIABLE]
    supervisor = SupervisorHandle(job_id)
    group_id, rank = divmod(site.rank, partition.size)
    gate = Gate()
    link = _Gated(gate, supervisor, group_id, rank)
    link.start()
    find = partial(supervisor.ask, "lifeline", timeout_s=_TIMEOUT_S)
    lifeline = Lifeline(find, group_id, rank)
    store = host_store("0.0.0.0") if rank == 0 else None
    port = store.port if store is not None else None

    def build_and_report(initialise: bool) -> Trainer:
        trainer = build_trainer(spec, partition, torch.device("cpu"), initialise=initialise)
        link.send(Ready(rank, partition.node, "127.0.0.1", os.getpid(), port))
        return trainer

    description = f"group {group_id} of job {job_id}"
    return InBlocks(build_and_report, link, gate, spec, description, (lifeline, store))


class _Gated(GatedMembership, SupervisorLink):
    pass
