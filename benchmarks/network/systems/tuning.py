"""What `mics auto` does before it trains: measures where it stands and asks the planner."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median

import psutil
import torch
import torch.distributed as dist

from benchmarks.harness.site import Site
from benchmarks.network.systems.plain import PlainTraining, build_optimizer, build_whole_model
from mics_core.comm.measured import ProbeSettings, cluster_findings
from mics_core.comm.probing import measure_cluster
from mics_core.engine.counting import count_shape
from mics_core.planner.plan import Plan
from mics_core.planner.profile import ClusterProfile
from mics_core.planner.shape import ModelShape
from mics_core.spec import JobSpec
from mics_core.spec.planning import plan_job, profile_of

__all__ = ["Tuned", "measure_profile", "tune"]

_PROBE = ProbeSettings(
    message_bytes=(4 << 10, 64 << 10, 512 << 10, 2 << 20, 8 << 20),
    repetitions=3,
    window_s=0.05,
    size_budget_s=4.0,
    compute_s=1.0,
)
_COMPUTE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was measured, and the planner's answer."""

    profile: ClusterProfile
    shape: ModelShape
    plan: Plan


def tune(spec: JobSpec, asked: JobSpec, site: Site) -> Tuned:
    """Measure links and computing, and plan; all workers of the world must call it.

    Args:
        spec: The training that all systems are given.
        asked: The same, with what our engine is asked for and what it may choose.
        site: The worker's place.
    """
    shape = count_shape(spec)
    profile = measure_profile(spec, site, shape)
    box = [Tuned(profile, shape, plan_job(asked, shape, profile))]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def measure_profile(spec: JobSpec, site: Site, shape: ModelShape) -> ClusterProfile:
    """Measure links and computing with all workers busy at once, as they are in training."""
    report = measure_cluster(list(site.nodes_of_ranks), torch.device("cpu"), _PROBE)
    memory_gib = psutil.virtual_memory().total / site.world_size / 2**30
    found = cluster_findings(report, name="emulated", memory_gib=memory_gib)
    profile = profile_of(found.spec, "gloo")
    return replace(profile, seconds_per_flop_measured=_seconds_per_flop(spec, site, shape))


def _seconds_per_flop(spec: JobSpec, site: Site, shape: ModelShape) -> float:
    """Time a whole micro-batch's forward and backward on all workers at once."""
    model = build_whole_model(spec)
    alone = PlainTraining(model, build_optimizer(model, spec), spec, site)
    times = []
    for _ in range(_COMPUTE_ROUNDS):
        dist.barrier()
        begin = time.monotonic()
        alone.run_micro_batches(0)
        times.append(time.monotonic() - begin)
    mine = median(times) / alone.num_micro_batches
    slowest = torch.tensor([mine], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    samples = spec.training.settled_micro_batch_size
    return float(slowest) / (3 * shape.forward_flops * samples)
