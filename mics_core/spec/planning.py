"""Turns a job and a cluster of the specification into what the planner takes.

The planner knows plain values only; everything about files, names and fields of a job is here. No
torch: transformers are counted by formula. A user's own module has to be counted by building it,
which `mics_core.engine.counting` does.
"""

from __future__ import annotations

import json
from dataclasses import replace

from mics_core.errors import BrokenRule, LayoutError, Problem, SpecificationError
from mics_core.planner.candidates import Choices, Pins
from mics_core.planner.clusters import (
    CLUSTER_NAMES,
    close_cluster_names,
    named_cluster,
    names_a_file,
)
from mics_core.planner.layout import ClusterShape
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.plan import NoPlan, Plan, plan_layout
from mics_core.planner.prediction import Layout, Workload
from mics_core.planner.profile import Backend, ClusterProfile, Link, Peaks
from mics_core.planner.shape import ModelShape, UnitShape, shape_of_transformer
from mics_core.spec.cluster import ClusterSpec, LinkSpec, load_cluster_spec
from mics_core.spec.job import JobSpec, TransformersModel
from mics_core.spec.peaks import PeakTflops
from mics_core.spec.rules import RuleError

__all__ = [
    "batch_problem",
    "choices_of",
    "find_cluster",
    "pins_of",
    "plan_job",
    "profile_of",
    "settled_spec",
    "shape_by_formula",
    "shape_from_json",
    "transformer_sizes",
    "workload_of",
]

_GIB = 1 << 30
_MIB = 1 << 20
_COUNTED_OPTIONS = {"num_key_value_heads"}


def find_cluster(
    name: str, backend: Backend, field: str = "cluster", *, may_read_files: bool = True
) -> ClusterProfile:
    """Return a named cluster, or what a cluster file says.

    Args:
        name: Such as `p4d.24xlarge`, or a path; a name goes first.
        backend: What runs the collectives on a cluster of a file.
        field: What an error calls it.
        may_read_files: Whether a path may be followed.

    Raises:
        SpecificationError: It is neither, or the file breaks a rule.
    """
    if (found := named_cluster(name)) is not None:
        return found
    if names_a_file(name):
        if may_read_files:
            return profile_of(load_cluster_spec(name), backend)
        rule = "files of the service's machine are not read for a plan."
        remedy = "Send what the file holds as `cluster`."
        raise SpecificationError([Problem(field, repr(name), rule, remedy)])
    close = close_cluster_names(name)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(CLUSTER_NAMES)}."
    rule = "it is neither a known cluster nor a cluster file."
    raise SpecificationError([Problem(field, repr(name), rule, hint)])


def profile_of(spec: ClusterSpec, backend: Backend) -> ClusterProfile:
    """Return the plain values of a cluster file."""
    return ClusterProfile(
        name=spec.name,
        num_nodes=spec.nodes,
        workers_per_node=spec.workers_per_node,
        memory_bytes=int(spec.memory_gib * _GIB),
        peak_flops_per_s=_peaks(spec.peak_tflops),
        intra_node=_link(spec.intra_node),
        inter_node=_link(spec.inter_node),
        efficiency=spec.efficiency,
        backend=backend,
        memory_bytes_per_s=None if spec.memory_gb_per_s is None else spec.memory_gb_per_s * 1e9,
        host_bytes_per_s=spec.host_gb_per_s * 1e9,
        shares_memory=backend == "gloo",
    )


def _peaks(tflops: float | PeakTflops) -> float | Peaks:
    if not isinstance(tflops, PeakTflops):
        return tflops * 1e12

    def flops(rate: float | None) -> float | None:
        return None if rate is None else rate * 1e12

    return Peaks(flops(tflops.fp32), flops(tflops.bf16), flops(tflops.fp64))


def _link(spec: LinkSpec) -> Link:
    return Link(spec.bandwidth_gbit_per_s * 1e9 / 8, spec.latency_us * 1e-6)


def shape_by_formula(spec: JobSpec, vocabulary: int) -> ModelShape | None:
    """Return the shape of the job's model; None where only building it would tell.

    Args:
        spec: The job.
        vocabulary: Ids of its tokenizer, for a model that does not state its own.
    """
    model = spec.model
    if not isinstance(model, TransformersModel) or set(model.options) - _COUNTED_OPTIONS:
        return None
    return shape_of_transformer(transformer_sizes(spec, model, vocabulary))


def transformer_sizes(spec: JobSpec, model: TransformersModel, vocabulary: int) -> TransformerSizes:
    """Return the sizes of a transformer with the defaults filled in."""
    key_value_heads = model.options.get("num_key_value_heads")
    return TransformerSizes(
        family=model.family,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        intermediate_size=model.intermediate_size or 4 * model.hidden_size,
        vocab_size=model.vocab_size or vocabulary,
        sequence_length=spec.training.sequence_length,
        tie_embeddings=model.tie_embeddings,
        num_key_value_heads=key_value_heads if isinstance(key_value_heads, int) else None,
    )


def shape_from_json(text: str) -> ModelShape:
    """Return the shape that `mics_core.engine.counting` printed."""
    value = json.loads(text)
    block, root = UnitShape(**value.pop("block")), UnitShape(**value.pop("root"))
    return ModelShape(block=block, root=root, **value)


def workload_of(spec: JobSpec) -> Workload:
    """Return what of a job no layout changes."""
    training = spec.training
    return Workload(
        global_batch_size=training.global_batch_size,
        precision=training.precision,
        optimizer=training.optimizer.kind,
        has_momentum=training.optimizer.momentum > 0,
        bucket_bytes=int(spec.engine.bucket_mib * _MIB),
        offload_optimizer=spec.engine.offload_optimizer and bool(spec.resources.gpus),
        determinism=training.determinism,
        minimum_groups=spec.groups.minimum,
        writes_checkpoints=spec.checkpoint.directory is not None,
        is_elastic=spec.groups.upper_bound > 1,
        reuses_gradients=spec.engine.reuse_gradients,
    )


def pins_of(spec: JobSpec) -> Pins:
    """Return what a job fixes of its layout.

    A job that asks for one group, which is the default, is planned for all that the cluster holds:
    it says nothing of how many there will be. The plan's reason says so.
    """
    groups = spec.groups.upper_bound
    return Pins(
        partition_size=spec.partition_size,
        micro_batch_size=spec.training.micro_batch_size,
        activation_checkpointing=spec.training.activation_checkpointing,
        reshard=spec.engine.reshard,
        accumulation=spec.engine.accumulation,
        hierarchical=spec.engine.hierarchical,
        largest_groups=groups if groups > 1 else None,
        asks_for_one_group=groups == 1,
    )


def batch_problem(spec: JobSpec, partition_size: int, micro_batch_size: int) -> BrokenRule | None:
    """Return why the job's batch and groups do not suit a layout, or None if they do."""
    try:
        spec.num_micro_batches(partition_size, micro_batch_size)
    except RuleError as error:
        return error.broken
    return None


def choices_of(
    spec: JobSpec, model: ModelShape, cluster: ClusterProfile, nodes: ClusterShape | None = None
) -> Choices:
    """Return what is to be planned.

    Args:
        spec: The job.
        model: The shape of its model.
        cluster: The cluster.
        nodes: The living nodes, if there are any.

    Raises:
        SpecificationError: The cluster's peak in the job's precision is not known.
    """
    precision = spec.training.precision
    if not cluster.states_peak(precision):
        rule = f"the peak of a worker of {cluster.name} in {precision} is not known."
        remedy = (
            f"Add `{precision}` to peak_tflops of the cluster file, or give one number there for"
            " every precision."
        )
        raise SpecificationError([Problem("training.precision", repr(precision), rule, remedy)])
    memory_gib = spec.resources.memory_gib
    if memory_gib is not None:
        cluster = replace(cluster, memory_bytes=int(memory_gib * _GIB))
    return Choices(
        model=model,
        workload=workload_of(spec),
        cluster=cluster,
        pins=pins_of(spec),
        nodes=nodes,
        batch_problem=lambda size, micro_batch: batch_problem(spec, size, micro_batch),
    )


def plan_job(
    spec: JobSpec, model: ModelShape, cluster: ClusterProfile, nodes: ClusterShape | None = None
) -> Plan:
    """Choose a layout by predicted speed.

    Raises:
        LayoutError: Nothing fits; names the value, the rule and the remedy.
        SpecificationError: The cluster's peak in the job's precision is not known.
    """
    found = plan_layout(choices_of(spec, model, cluster, nodes))
    if isinstance(found, NoPlan):
        raise LayoutError([found.problem.as_problem()])
    return found


def settled_spec(spec: JobSpec, layout: Layout) -> JobSpec:
    """Return the specification with the numbers of a layout where it said `auto`."""
    training = spec.training.model_copy(
        update={
            "micro_batch_size": layout.micro_batch_size,
            "activation_checkpointing": layout.is_checkpointed,
        }
    )
    return spec.model_copy(update={"partition_size": layout.partition_size, "training": training})
