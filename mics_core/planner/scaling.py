"""How a job's speed grows with the cluster: MiCS beside full sharding, by the cost model.

Full sharding is one partition group of all workers with flat collectives, as FSDP and ZeRO-3 run.
Here it hides its communication like MiCS does and uses the same engine: the difference is the
partition size and what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mics_core.planner.candidates import Choices
from mics_core.planner.plan import NoPlan, plan_layout
from mics_core.planner.prediction import Prediction
from mics_core.planner.profile import ClusterProfile

__all__ = ["ScalePoint", "scale", "worker_counts"]


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """A job on one number of workers."""

    num_workers: int
    global_batch_size: int
    mics: Prediction | str
    """The planner's choice, or why there is none."""
    full: Prediction | str
    """Full sharding, or why it cannot be."""


def worker_counts(first: int, last: int) -> list[int]:
    """Return first, twice that, and so on up to last."""
    counts = [first]
    while 2 * counts[-1] <= last:
        counts.append(2 * counts[-1])
    return counts


def scale(choices: Choices, counts: Iterable[int], *, is_weak: bool) -> list[ScalePoint]:
    """Predict a job on growing clusters.

    Args:
        choices: Model, workload, cluster and what the job fixes; its batch is the first point's.
        counts: Numbers of workers, ascending; whole nodes, or at most one.
        is_weak: Whether the global batch grows with the workers; else it stays.
    """
    counts = list(counts)
    points = []
    for count in counts:
        batch = choices.workload.global_batch_size
        if is_weak:
            batch = batch * count // counts[0]
        cluster = _resized(choices.cluster, count)
        if isinstance(cluster, str):
            points.append(ScalePoint(count, batch, cluster, cluster))
            continue
        at = replace(
            choices,
            workload=replace(choices.workload, global_batch_size=batch),
            cluster=cluster,
            nodes=None,
            batch_problem=None,
            pins=replace(choices.pins, largest_groups=None),
        )
        full = replace(
            at.pins,
            partition_size=count,
            reshard="always",
            accumulation="group",
            hierarchical="never",
        )
        points.append(ScalePoint(count, batch, _best(at), _best(replace(at, pins=full))))
    return points


def _resized(cluster: ClusterProfile, num_workers: int) -> ClusterProfile | str:
    k = cluster.workers_per_node
    if num_workers <= k:
        return cluster.with_nodes(1, num_workers)
    if num_workers % k:
        return f"{num_workers} workers are no whole nodes of {k}."
    return cluster.with_nodes(num_workers // k)


def _best(choices: Choices) -> Prediction | str:
    plan = plan_layout(choices)
    if isinstance(plan, NoPlan):
        return plan.problem.rule
    return plan.choice.prediction
