"""Our own system under fire: a job of three partition groups on simulated nodes."""

from __future__ import annotations

import ray

from benchmarks.harness.followed import FollowedJob
from benchmarks.recovery.faults import Shooting
from benchmarks.recovery.setting import NUM_GROUPS, PARTITION_SIZE, build_spec
from benchmarks.recovery.shots import Report, Shots
from mics_core.cluster.local import LocalCluster
from mics_core.cluster.names import NAMESPACE
from mics_core.spec import JobSpec

__all__ = ["run"]


def run(shots: Shots, report: Report) -> None:
    """Do all faults to one job, and report what each cost."""
    with LocalCluster(NUM_GROUPS, PARTITION_SIZE) as cluster:
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        try:
            with FollowedJob(_spec(shots)) as job:
                shooting = Shooting(job, cluster, seed=shots.seed)
                shots.inflict(shooting.inflict, report)
                job.cancel()
                job.ended()
        finally:
            ray.shutdown()


def _spec(shots: Shots) -> JobSpec:
    spec = build_spec(shots.tokens, shots.course.forward_s)
    groups = spec.groups.model_copy(update={"wanted": NUM_GROUPS, "maximum": NUM_GROUPS})
    return spec.model_copy(update={"partition_size": PARTITION_SIZE, "groups": groups})
