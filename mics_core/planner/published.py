"""The cost model held against the published figures of MiCS: what was measured, what is predicted.

[Note: what is assumed]
The published models are proprietary: their shapes, and the batches they were trained with, are not
part of the figures. Assumed are GPT-like models of 80 blocks of width 10240 (101 billion
parameters) and 96 blocks of width 12288 (175 billion), 2048 tokens a sample, 4 micro-batches of 2
samples a worker, which is what the memory model lets a 40 GB worker hold, partition groups of 128,
activations computed again, and operations counted with those done twice. The baseline, ZeRO-3 in
DeepSpeed, is taken to hide none of its communication.

[Note: what is fitted]
Two constants, `EFFICIENCY` to MiCS on 512 GPUs and `LATENCY_S` to ZeRO-3 on 512 GPUs, rounded. The
other rows are predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from mics_core.planner.cost import predict
from mics_core.planner.parameters import TransformerSizes
from mics_core.planner.prediction import Layout, Prediction, Workload
from mics_core.planner.profile import ClusterProfile, Link
from mics_core.planner.shape import ModelShape, shape_of_transformer
from mics_core.planner.strategy import Strategy, default_strategy

__all__ = [
    "EFFICIENCY",
    "GPT_100B",
    "GPT_175B",
    "LATENCY_S",
    "OtherAssumption",
    "PublishedRow",
    "fit_constants",
    "other_assumptions",
    "published_rows",
]

EFFICIENCY = 0.55
"""Share of the peak that layers reach when nothing waits."""
LATENCY_S = 150e-6
"""Effective time of one round of a collective between nodes, stragglers and congestion included."""

GPT_100B = TransformerSizes("gpt2", 10240, 80, 80, 40960, 50257, 2048)
"""The assumed shape of the model of 100 billion parameters."""
GPT_175B = TransformerSizes("gpt2", 12288, 96, 96, 49152, 50257, 2048)
"""The assumed shape of the model of 175 billion parameters."""

_PARTITION_SIZE = 128
_MICRO_BATCH_SIZE = 2
_MICRO_BATCHES = 4
_OTHER_MICRO_BATCH_SIZES = (1, 3, 4)
_TFLOPS_OF_MICS = 170.0
_TFLOPS_OF_ZERO = 62.0


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One published figure and the model's."""

    what: str
    unit: str
    published: float
    predicted: float
    is_fitted: bool
    """Whether a constant was fitted to it, so that its error says nothing."""

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, slots=True)
class OtherAssumption:
    """What comes out where something else is assumed, with both constants fitted anew.

    Args:
        micro_batch_size: Samples of a micro-batch.
        zero_hides: Whether ZeRO-3 hides its communication as our engine does.
        zero_weak_scaling: ZeRO-3's weak scaling from 128 to 512 workers, in per cent.
        reaches_mics: Whether MiCS can reach its published figure at all.
    """

    micro_batch_size: int
    zero_hides: bool
    zero_weak_scaling: float
    reaches_mics: bool


def published_rows(a100_40gb: ClusterProfile, a100_80gb: ClusterProfile) -> list[PublishedRow]:
    """Return all published figures with the model's.

    Args:
        a100_40gb: Nodes of 8 A100 of 40 GB at 400 Gbit/s.
        a100_80gb: The same of 80 GB.
    """
    model = shape_of_transformer(GPT_100B)
    larger = shape_of_transformer(GPT_175B)
    mics = {n: _tflops(_mics(model, a100_40gb, n)) for n in (128, 512)}
    zero = {n: _tflops_without_overlap(_zero(model, a100_40gb, n)) for n in (128, 512)}
    return [
        PublishedRow(
            "100B, 512 × A100-40GB, MiCS", "TFLOP/s a GPU", _TFLOPS_OF_MICS, mics[512], True
        ),
        PublishedRow(
            "100B, 512 × A100-40GB, ZeRO-3", "TFLOP/s a GPU", _TFLOPS_OF_ZERO, zero[512], True
        ),
        PublishedRow(
            "100B, weak scaling 128 to 512, MiCS", "%", 99.4, 100 * mics[512] / mics[128], False
        ),
        PublishedRow(
            "100B, weak scaling 128 to 512, ZeRO-3", "%", 72.0, 100 * zero[512] / zero[128], False
        ),
        PublishedRow(
            "100B, 512 × A100-40GB, MiCS over ZeRO-3",
            "times",
            _TFLOPS_OF_MICS / _TFLOPS_OF_ZERO,
            mics[512] / zero[512],
            True,
        ),
        PublishedRow(
            "175B, 128 × A100-80GB, MiCS",
            "TFLOP/s a GPU",
            169.0,
            _tflops(_mics(larger, a100_80gb, 128)),
            False,
        ),
    ]


def other_assumptions(a100_40gb: ClusterProfile) -> list[OtherAssumption]:
    """Return what other micro-batches, and a ZeRO-3 that hides what it sends, would mean.

    Args:
        a100_40gb: Nodes of 8 A100 of 40 GB at 400 Gbit/s.
    """
    others = [(size, False) for size in _OTHER_MICRO_BATCH_SIZES]
    return [_assume(a100_40gb, *other) for other in [*others, (_MICRO_BATCH_SIZE, True)]]


def _assume(a100_40gb: ClusterProfile, micro_batch_size: int, zero_hides: bool) -> OtherAssumption:
    model, speed = shape_of_transformer(GPT_100B), _speed_of_zero(zero_hides)
    constants = fit_constants(a100_40gb, micro_batch_size, zero_hides=zero_hides)
    cluster = _with_constants(a100_40gb, *constants)
    few, many = (speed(_zero(model, cluster, n, micro_batch_size)) for n in (128, 512))
    mics = _tflops(_mics(model, cluster, 512, micro_batch_size))
    # The search for the efficiency ends at 1, whether the figure is reached there or not.
    return OtherAssumption(
        micro_batch_size, zero_hides, 100 * many / few, mics > _TFLOPS_OF_MICS * 0.999
    )


def fit_constants(
    a100_40gb: ClusterProfile,
    micro_batch_size: int = _MICRO_BATCH_SIZE,
    *,
    zero_hides: bool = False,
) -> tuple[float, float]:
    """Return the efficiency and the latency in seconds that give the two fitted figures.

    Args:
        a100_40gb: Nodes of 8 A100 of 40 GB at 400 Gbit/s.
        micro_batch_size: Samples of a micro-batch.
        zero_hides: Whether ZeRO-3 hides its communication as our engine does.
    """
    model, speed = shape_of_transformer(GPT_100B), _speed_of_zero(zero_hides)
    efficiency, latency_s = EFFICIENCY, LATENCY_S
    for _ in range(3):  # each constant moves the other's figure by little
        low, high = 0.1, 1.0
        for _ in range(30):
            efficiency = (low + high) / 2
            cluster = _with_constants(a100_40gb, efficiency, latency_s)
            reached = _tflops(_mics(model, cluster, 512, micro_batch_size))
            low, high = (efficiency, high) if reached < _TFLOPS_OF_MICS else (low, efficiency)
        low, high = 0.0, 1e-2
        for _ in range(30):
            latency_s = (low + high) / 2
            cluster = _with_constants(a100_40gb, efficiency, latency_s)
            reached = speed(_zero(model, cluster, 512, micro_batch_size))
            low, high = (latency_s, high) if reached > _TFLOPS_OF_ZERO else (low, latency_s)
    return efficiency, latency_s


def _with_constants(cluster: ClusterProfile, efficiency: float, latency_s: float) -> ClusterProfile:
    link = Link(cluster.inter_node.bandwidth_bytes_per_s, latency_s)
    return replace(cluster, efficiency=efficiency, inter_node=link)


def _mics(
    model: ModelShape,
    cluster: ClusterProfile,
    num_workers: int,
    micro_batch_size: int = _MICRO_BATCH_SIZE,
) -> Prediction:
    strategy = default_strategy(_PARTITION_SIZE, cluster.workers_per_node)
    return _run(model, cluster, num_workers, _PARTITION_SIZE, micro_batch_size, strategy)


def _zero(
    model: ModelShape,
    cluster: ClusterProfile,
    num_workers: int,
    micro_batch_size: int = _MICRO_BATCH_SIZE,
) -> Prediction:
    return _run(model, cluster, num_workers, num_workers, micro_batch_size, Strategy())


def _run(
    model: ModelShape,
    cluster: ClusterProfile,
    num_workers: int,
    size: int,
    micro_batch_size: int,
    strategy: Strategy,
) -> Prediction:
    nodes = cluster.with_nodes(num_workers // cluster.workers_per_node)
    # These systems reduce across groups from GPU to GPU, and not by way of the hosts as ours.
    nodes = replace(nodes, host_bytes_per_s=math.inf)
    layout = Layout(size, num_workers // size, micro_batch_size, strategy, is_checkpointed=True)
    batch = num_workers * micro_batch_size * _MICRO_BATCHES
    return predict(model, nodes, layout, Workload(batch))


def _speed_of_zero(hides: bool) -> Callable[[Prediction], float]:
    return _tflops if hides else _tflops_without_overlap


def _tflops(prediction: Prediction) -> float:
    return prediction.hardware_tflops


def _tflops_without_overlap(prediction: Prediction) -> float:
    return prediction.hardware_tflops * prediction.step_s / prediction.times.without_overlap
