"""Plans a job for the command line and for the API, in the form that both show.

Planning is arithmetic: no torch, no Ray, no service. Only a user's own module has to be built to be
counted; that is done by another program, since neither the API nor the command line loads torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from mics_core.data.vocabulary import vocabulary_size
from mics_core.errors import Problem, SpecificationError
from mics_core.planner.plan import Plan, Ranked
from mics_core.planner.profile import Backend, ClusterProfile
from mics_core.planner.shape import ModelShape
from mics_core.spec.cluster import ClusterSpec
from mics_core.spec.job import JobSpec, TransformersModel
from mics_core.spec.planning import find_cluster, profile_of, shape_by_formula, shape_from_json
from service.schemas import PlanAnswer, PlannedLayout, RefusedLayout

__all__ = [
    "MOST_WORKERS",
    "answer_of",
    "backend_of",
    "cluster_of",
    "counted_shape",
    "known_shape",
    "with_nodes",
]

MOST_WORKERS = 65536
"""Largest cluster that is planned for."""

_COUNTING_WITHIN_S = 300


def backend_of(spec: JobSpec) -> Backend:
    """Return what runs the job's collectives."""
    return "nccl" if spec.resources.gpus else "gloo"


def cluster_of(
    spec: JobSpec, cluster: str | ClusterSpec | None, *, may_read_files: bool
) -> ClusterProfile:
    """Return the cluster that is asked for, or else the one that the job names.

    Args:
        spec: The job.
        cluster: A name, a path, what a file holds, or nothing.
        may_read_files: Whether a path may be followed.

    Raises:
        SpecificationError: There is none, or it is not known.
    """
    if isinstance(cluster, ClusterSpec):
        return profile_of(cluster, backend_of(spec))
    field = "cluster" if cluster is not None else "resources.cluster"
    name = cluster if cluster is not None else spec.resources.cluster
    if name is None:
        rule = "a plan needs the speed of the cluster's links and workers."
        remedy = (
            "Name one, such as p4d.24xlarge, or have `mics probe` measure yours and give the file."
        )
        raise SpecificationError([Problem("cluster", "(nothing)", rule, remedy)])
    return find_cluster(name, backend_of(spec), field, may_read_files=may_read_files)


def with_nodes(cluster: ClusterProfile, nodes: int | None) -> ClusterProfile:
    """Return the cluster with another number of nodes, if one is asked for.

    Raises:
        SpecificationError: It becomes larger than what is planned for.
    """
    sized = cluster if nodes is None else cluster.with_nodes(nodes)
    if sized.num_workers > MOST_WORKERS:
        rule = f"clusters of at most {MOST_WORKERS} workers are planned for."
        value = f"{sized.num_nodes} nodes of {sized.workers_per_node} workers"
        raise SpecificationError([Problem("nodes", value, rule, "Ask for fewer nodes.")])
    return sized


def known_shape(spec: JobSpec) -> ModelShape:
    """Return the shape of the job's model by formula, without a look at any file.

    Raises:
        SpecificationError: Only building the model, or a file, would tell.
    """
    shape = shape_by_formula(spec, _stated_vocabulary(spec))
    if shape is not None:
        return shape
    raise SpecificationError(
        [
            Problem(
                "model",
                getattr(spec.model, "callable", "a model with options"),
                "its parameters are only known once it is built, which the service does not do.",
                "Plan it with `mics plan job.yaml`, which builds it, or describe a transformer of"
                " about its size.",
            )
        ]
    )


def _stated_vocabulary(spec: JobSpec) -> int:
    if spec.tokenizer.kind == "bytes":
        return vocabulary_size(spec)
    stated = spec.model.vocab_size if isinstance(spec.model, TransformersModel) else None
    if stated is not None:
        return stated
    rule = "files of the service's machine are not read for a plan."
    remedy = "Set model.vocab_size, or plan it with `mics plan job.yaml`, which reads the file."
    raise SpecificationError([Problem("tokenizer.path", repr(spec.tokenizer.path), rule, remedy)])


def counted_shape(spec: JobSpec, file: Path) -> ModelShape:
    """Return the shape of the job's model, by another program where it has to be built.

    Args:
        spec: The job.
        file: The job's file; modules are looked for in its folder first.

    Raises:
        SpecificationError: The model cannot be built.
    """
    shape = shape_by_formula(spec, vocabulary_size(spec))
    if shape is not None:
        return shape
    command = [sys.executable, "-m", "mics_core.engine.counting", str(file)]
    folders = [str(file.resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_COUNTING_WITHIN_S,
        check=False,
        env=environment,
    )
    if done.returncode == 0:
        return shape_from_json(done.stdout)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    rule = f"it cannot be counted: {lines[-1] if lines else 'the program ended without a word.'}"
    remedy = "Correct the builder, and start `mics` where its module can be imported."
    raise SpecificationError(
        [Problem("model", getattr(spec.model, "callable", "the model"), rule, remedy)]
    )


def answer_of(plan: Plan, cluster: ClusterProfile, model: ModelShape, most: int) -> PlanAnswer:
    """Return a plan as the API answers with it.

    Args:
        plan: The plan.
        cluster: What it was made for.
        model: What it was made for.
        most: Most other layouts, and most refused ones, to list.
    """
    return PlanAnswer(
        cluster=cluster.name,
        nodes=cluster.num_nodes,
        workers_per_node=cluster.workers_per_node,
        num_parameters=model.parameters,
        num_candidates=1 + len(plan.others),
        choice=_layout(plan.choice),
        reason=plan.reason,
        candidates=[_layout(each) for each in plan.others[:most]],
        refused=[
            RefusedLayout(layout=each.what, cause=each.cause, reason=each.reason)
            for each in plan.refused[:most]
        ],
    )


def _layout(ranked: Ranked) -> PlannedLayout:
    prediction, layout = ranked.prediction, ranked.layout
    memory, traffic = prediction.memory, prediction.traffic
    return PlannedLayout(
        partition_size=layout.partition_size,
        num_groups=layout.num_groups,
        num_workers=layout.num_workers,
        micro_batch_size=layout.micro_batch_size,
        micro_batches=prediction.micro_batches,
        activation_checkpointing=layout.is_checkpointed,
        **asdict(layout.strategy),
        step_s=prediction.step_s,
        samples_per_s=prediction.samples_per_s,
        tokens_per_s=prediction.tokens_per_s,
        model_tflops=prediction.model_tflops,
        hardware_tflops=prediction.hardware_tflops,
        mfu=prediction.mfu,
        memory_bytes={**asdict(memory), "total": memory.total},
        node_bytes={**asdict(traffic), "total": traffic.total},
        times_s={**asdict(prediction.times), "total": prediction.step_s},
        reason=ranked.reason,
    )
