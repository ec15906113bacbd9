"""What a job's speed is held against: the operations of its model and the peak of its workers."""

from __future__ import annotations

from dataclasses import dataclass

from mics_core.data.vocabulary import vocabulary_size
from mics_core.errors import MicsError
from mics_core.planner.profile import Backend
from mics_core.spec.job import JobSpec
from mics_core.spec.planning import find_cluster, shape_by_formula

__all__ = ["JobFigures", "figures_of"]

_FORWARD_AND_BACKWARD = 3.0


@dataclass(frozen=True, slots=True)
class JobFigures:
    """Figures of a job.

    Args:
        model_flops_per_sample: Operations of one sample, forward and backward; none if not known.
        peak_flops_per_s: Peak of one worker in the job's precision; none if the job does not name
            its cluster, or that does not state it.
    """

    model_flops_per_sample: float | None = None
    peak_flops_per_s: float | None = None


def figures_of(spec: JobSpec) -> JobFigures:
    """Return what is known of a job without building its model.

    Nothing hangs on it, so what cannot be found out is left out.
    """
    try:
        shape = shape_by_formula(spec, vocabulary_size(spec))
        flops = None if shape is None else _FORWARD_AND_BACKWARD * shape.forward_flops
        name = spec.resources.cluster
        backend: Backend = "nccl" if spec.resources.gpus else "gloo"
        cluster = None if name is None else find_cluster(name, backend, "resources.cluster")
    except MicsError:
        return JobFigures()
    precision = spec.training.precision
    is_known = cluster is not None and cluster.states_peak(precision)
    return JobFigures(flops, cluster.peak(precision) if cluster and is_known else None)
