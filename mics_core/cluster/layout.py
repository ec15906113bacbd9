"""Settles a job's layout against the living cluster, before anything is started.

Where the job names what is known of its cluster, the cost model decides; else memory alone does.
Whatever the job fixes is kept and checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import ray

from mics_core.cluster.placement import cluster_shape
from mics_core.data.vocabulary import vocabulary_size
from mics_core.errors import LayoutError, Problem
from mics_core.planner.candidates import stage_problem
from mics_core.planner.collectives import span_of
from mics_core.planner.layout import ClusterShape, check_partition_size
from mics_core.planner.prediction import Layout as PlannedLayout
from mics_core.planner.profile import Backend, ClusterProfile
from mics_core.planner.shape import ModelShape
from mics_core.planner.strategy import Strategy
from mics_core.planner.unmeasured import (
    MemoryChoice,
    choose_by_memory,
    pinned_strategy,
    stage_refusal,
)
from mics_core.spec.job import JobSpec
from mics_core.spec.planning import (
    batch_problem,
    find_cluster,
    pins_of,
    plan_job,
    settled_spec,
    shape_by_formula,
    workload_of,
)

__all__ = ["Layout", "check_layout", "settle_layout"]

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """How a job is run, and why."""

    partition_size: int
    """Workers of a partition group."""
    strategy: Strategy
    """How a partition group moves its model states."""
    spec: JobSpec
    """The job with a number wherever it said `auto`; workers see no other."""
    reason: str
    """Why this layout, in one sentence."""


def check_layout(spec: JobSpec) -> None:
    """Check what can be checked of a layout without building or counting a model.

    Raises:
        LayoutError: The cluster cannot hold the partition size that the job asks for.
    """
    if spec.partition_size != "auto":
        _check_size(spec, spec.partition_size, cluster_shape(spec.resources))


def settle_layout(spec: JobSpec) -> Layout:
    """Check what `spec` asks for and choose what it leaves open.

    Raises:
        LayoutError: The cluster cannot hold it, or nothing fits.
        SpecificationError: The model cannot be built, or the cluster file breaks a rule.
    """
    nodes = cluster_shape(spec.resources)
    size = spec.partition_size
    if size != "auto":
        _check_size(spec, size, nodes)
    if spec.resources.cluster is not None:
        return _planned(spec, nodes, spec.resources.cluster)
    training = spec.training
    if (
        size == "auto"
        or training.micro_batch_size == "auto"
        or training.activation_checkpointing == "auto"
    ):
        return _chosen_by_memory(spec, nodes)
    strategy = pinned_strategy(pins_of(spec), span_of(size, nodes))
    return Layout(size, strategy, spec, "The specification asks for it.")


def _check_size(spec: JobSpec, size: int, nodes: ClusterShape) -> None:
    problem = check_partition_size(size, nodes)
    if problem is not None:
        raise LayoutError([problem.as_problem()])
    if against := stage_problem(pins_of(spec), span_of(size, nodes)):
        raise LayoutError([stage_refusal(size, against).as_problem()])


def _planned(spec: JobSpec, nodes: ClusterShape, cluster: str) -> Layout:
    """Choose by predicted speed; the living nodes say where groups can stand."""
    backend: Backend = "nccl" if spec.resources.gpus else "gloo"
    profile = find_cluster(cluster, backend, "resources.cluster")
    living = None
    if nodes.num_workers:
        profile = _as_living(profile, nodes)
        living = nodes
    plan = plan_job(spec, _model_shape(spec), profile, living)
    return _settled(spec, plan.choice.layout, plan.reason)


def _as_living(profile: ClusterProfile, nodes: ClusterShape) -> ClusterProfile:
    """Return the profile with the workers that the nodes really have.

    Nodes that an autoscaler has yet to add count as the profile says.
    """
    largest = max(nodes.nodes_by_size)
    num_nodes = max(profile.num_nodes, sum(nodes.nodes_by_size.values()))
    return profile.with_nodes(num_nodes, largest)


def _chosen_by_memory(spec: JobSpec, nodes: ClusterShape) -> Layout:
    found = choose_by_memory(
        _model_shape(spec),
        workload_of(spec),
        pins_of(spec),
        _worker_memory_bytes(spec, nodes),
        nodes,
        lambda size, micro_batch: batch_problem(spec, size, micro_batch),
        "nccl" if spec.resources.gpus else "gloo",
    )
    if not isinstance(found, MemoryChoice):
        raise LayoutError([found.as_problem()])
    return _settled(spec, found.layout, found.reason)


def _settled(spec: JobSpec, layout: PlannedLayout, reason: str) -> Layout:
    settled = settled_spec(spec, layout)
    return Layout(layout.partition_size, layout.strategy, settled, reason)


def _model_shape(spec: JobSpec) -> ModelShape:
    """Return the model's shape, by formula where there is one."""
    shape = shape_by_formula(spec, vocabulary_size(spec))
    if shape is None:
        # Imported here: only a user's own model has to be built, which needs torch.
        from mics_core.engine.counting import count_shape

        shape = count_shape(spec)
    return shape


def _worker_memory_bytes(spec: JobSpec, nodes: ClusterShape) -> int:
    """Memory of one worker: as the specification says, or an equal share of the smallest node."""
    if spec.resources.memory_gib is not None:
        return int(spec.resources.memory_gib * _GIB)
    if spec.resources.gpus:
        raise LayoutError(
            [
                Problem(
                    "resources.memory_gib",
                    "(nothing)",
                    "Ray does not tell the memory of a GPU, which what is 'auto' needs.",
                    "Set resources.memory_gib to the memory of one GPU, name resources.cluster, or"
                    " set partition_size to a number.",
                )
            ]
        )
    workers = {node.node_id: node.num_workers for node in nodes.nodes}
    shares = [
        int(node["Resources"].get("memory", 0)) // workers[node["NodeID"]]
        for node in ray.nodes()
        if node["NodeID"] in workers
    ]
    if not shares:
        raise LayoutError(
            [
                Problem(
                    "partition_size",
                    "auto",
                    "no living node can hold a worker, so its memory is not known.",
                    "Set resources.memory_gib or partition_size, or add a node.",
                )
            ]
        )
    return min(shares)
